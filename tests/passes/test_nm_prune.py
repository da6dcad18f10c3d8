"""Pruning to N:M: the mask against loops, the numbers of the model against NumPy, and what is reported."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.passes import PassError, spec
from sparsec.passes.nm_pattern import NM
from sparsec.passes.nm_prune import PruneNM, mask
from sparsec.passes.nm_recognise import RecogniseNM

F = TensorProto.FLOAT


def mask_by_loops(weight, nm, groups, power):
    out, taps, k = weight.shape
    keep = np.ones(weight.shape, bool)
    run = out // groups
    for start in range(0, out, run):
        for first in range(start, start + run, nm.block):
            channels = slice(first, min(first + nm.block, start + run))
            for tap in range(taps):
                for base in range(0, k - nm.m + 1, nm.m):
                    scores = [
                        sum(abs(float(w)) ** power for w in weight[channels, tap, base + i])
                        for i in range(nm.m)
                    ]
                    best = sorted(range(nm.m), key=lambda i: (-scores[i], i))[: nm.n]
                    keep[channels, tap, base : base + nm.m] = [i in best for i in range(nm.m)]
    return keep


@pytest.mark.parametrize("text", ["2:4", "1:4x4", "2:4x8", "3:5x4", "6:8x16", "2:4x64"])
@pytest.mark.parametrize(
    "shape, groups", [((16, 1, 16), 1), ((10, 3, 22), 1), ((12, 2, 9), 2), ((1, 1, 8), 1)]
)
@pytest.mark.parametrize("method, power", [("magnitude", 1), ("energy", 2)])
def test_mask_keeps_the_highest_scores(text, shape, groups, method, power):
    nm = NM.parse(text)
    # Small integers: many ties, and exact sums.
    weight = np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)
    np.testing.assert_array_equal(mask(weight, nm, groups, method), mask_by_loops(weight, nm, groups, power))


def test_the_methods_differ_where_one_channel_is_large():
    weight = np.array([[[3.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]], [[0.0, 0.0]]])
    assert mask(weight, NM(1, 2, 4), method="magnitude")[0, 0].tolist() == [False, True]
    assert mask(weight, NM(1, 2, 4), method="energy")[0, 0].tolist() == [True, False]


def test_nan_stays_to_be_seen():
    weight = np.array([[[1e30, np.nan, np.inf, 1.0]]], np.float32)
    assert mask(weight, NM(2, 4))[0, 0].tolist() == [False, True, True, False]


def model_of(nodes, constants, inputs=(("x", [3, 64]),), outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(k, TensorProto.INT64 if k == "ids" else F, v) for k, v in inputs],
        [helper.make_tensor_value_info(o, F, None) for o in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def run(ort_run, model, **feeds):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ort_run(proto.SerializeToString(), feeds)


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def as_plain(model):
    """The model with every N:M operator turned back into the standard one, to be recognised anew."""
    for node in model.graph:
        if node.domain == "ai.sparsec":
            node.op_type, node.domain = node.op_type[2:], ""
            for name in ("n", "m", "block"):
                node.attributes.pop(name)
    return model


def patterns(model):
    return {
        n.name: NM(*(n.attributes[k].value for k in ("n", "m", "block"))) for n in model.graph if n.domain
    }


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "1:4x8", "4:16x16", "2:8x32", "3:4x64", "2:5x32"])
def test_what_is_pruned_is_recognised_as_what_was_asked_for(pattern, ort_run):
    nm = NM.parse(pattern)
    constants = {"C": weights(64, 16, 3, 3), "G": weights(100, 64, seed=1), "M": weights(100, 128, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "C"], ["a"], name="conv"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "G"], ["b"], transB=1, name="gemm"),
        helper.make_node("MatMul", ["b", "M"], ["y"], name="matmul"),
    ]
    model = model_of(nodes, constants, inputs=[("x", [2, 16, 6, 6])])
    result = PruneNM(nm.n, nm.m, nm.block)(model)
    assert [f.outcome for f in result.findings] == ["applied"] * 3 and result.modified
    assert patterns(model) == {"conv": nm, "gemm": nm, "matmul": nm}

    masks = [mask_by_loops(c, nm, 1, 1) for c in (constants["C"].reshape(64, 16, 9).transpose(0, 2, 1),)]
    x = weights(2, 16, 6, 6, seed=5)
    expected = np.where(masks[0].transpose(0, 2, 1).reshape(64, 16, 3, 3), constants["C"], 0)
    (conv,) = (v for k, v in model.graph.initializers.items() if k.startswith("C"))
    np.testing.assert_array_equal(conv.const_value.numpy(), expected)

    pruned = run(ort_run, model, x=x)["y"]
    assert [f.outcome for f in RecogniseNM()(as_plain(model)).findings] == ["applied"] * 3
    assert patterns(model) == {"conv": nm, "gemm": nm, "matmul": nm}
    np.testing.assert_array_equal(run(ort_run, model, x=x)["y"], pruned)


def test_numbers_are_those_of_the_pruned_weight(ort_run):
    W, x = weights(64, 40), weights(3, 64, seed=1)
    model = model_of([helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")], {"W": W})
    (finding,) = PruneNM(2, 4, 16)(model).findings
    keep = mask_by_loops(W.T[:, None], NM(2, 4, 16), 1, 1)[:, 0].T
    np.testing.assert_allclose(run(ort_run, model, x=x)["y"], x @ np.where(keep, W, 0), rtol=1e-5, atol=1e-5)
    energy = 100 * (W[keep].astype(float) ** 2).sum() / (W.astype(float) ** 2).sum()
    assert finding.reason == (
        "2:4x16 by magnitude: keeps 50.0 % of the weights and "
        f"{energy:.1f} % of their energy (sum of squares)"
    )
    assert (finding.node, finding.before, finding.after) == ("fc", "MatMul", "ai.sparsec.NMMatMul")
    assert list(model.graph.initializers) == ["W_pruned"]


def test_one_shared_weight_is_pruned_once(ort_run):
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "W"], ["y"], name="second"),
    ]
    model = model_of(nodes, {"W": weights(64, 64)})
    findings = PruneNM(2, 4, 4)(model).findings
    assert [f.applied for f in findings] == [True, True] and findings[0].reason == findings[1].reason
    assert "copy" not in findings[0].reason
    assert list(model.graph.initializers) == ["W_pruned"]
    assert run(ort_run, model, x=weights(3, 64))["y"].shape == (3, 64)


def test_tied_embedding_keeps_the_original(ort_run):
    table = weights(100, 64)
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["e"]),
        helper.make_node("Transpose", ["E"], ["T"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "T"], ["y"], name="head"),
    ]
    model = model_of(nodes, {"E": table}, inputs=[("ids", [5])], outputs=("y", "e"))
    (finding,) = PruneNM(2, 4, 32)(model).findings
    assert finding.reason.endswith("; a copy: E stays unpruned for what else reads it")
    ids = np.array([0, 99, 7, 7, 1])
    out = run(ort_run, model, ids=ids)
    np.testing.assert_array_equal(out["e"], table[ids])
    keep = mask_by_loops(table[:, None], NM(2, 4, 32), 1, 1)[:, 0]
    np.testing.assert_allclose(out["y"], table[ids] @ np.where(keep, table, 0).T, rtol=1e-5, atol=1e-5)


def test_one_weight_read_along_both_axes_is_pruned_along_each(ort_run):
    W, x = weights(64, 64), weights(3, 64, seed=1)
    nodes = [
        helper.make_node("Gemm", ["x", "W"], ["a"], name="plain"),
        helper.make_node("Gemm", ["x", "W"], ["b"], transB=1, name="transposed"),
    ]
    model = model_of(nodes, {"W": W}, outputs=("a", "b"))
    PruneNM(2, 4, 1)(model)
    out = run(ort_run, model, x=x)
    for name, weight in (("a", W.T), ("b", W)):
        kept = np.where(mask_by_loops(weight[:, None], NM(2, 4), 1, 1)[:, 0], weight, 0)
        np.testing.assert_allclose(out[name], x @ kept.T, rtol=1e-5, atol=1e-5)


def three_layers():
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="encoder.0"),
        helper.make_node("MatMul", ["a", "B"], ["b"], name="encoder.1"),
        helper.make_node("MatMul", ["b", "C"], ["y"], name="head"),
    ]
    return model_of(nodes, {k: weights(64, 64, seed=i) for i, k in enumerate("ABC")})


@pytest.mark.parametrize(
    "options, pruned, reasons",
    [
        ({"layers": "encoder.*"}, {"encoder.0", "encoder.1"}, ["not among layers=encoder.*"]),
        ({"skip": "*.0|head"}, {"encoder.1"}, ["named by skip=*.0|head"] * 2),
        (
            {"layers": "encoder.*", "skip": "*.1"},
            {"encoder.0"},
            ["named by skip=*.1", "not among layers=encoder.*"],
        ),
        ({"min_size": 5000}, set(), ["4096 weights are fewer than min_size=5000"] * 3),
        ({"m": 64, "n": 8}, {"encoder.0", "encoder.1", "head"}, []),
    ],
)
def test_layers_are_chosen_by_name_and_size(options, pruned, reasons):
    model = three_layers()
    findings = PruneNM(**{"n": 2, "m": 4, **options})(model).findings
    assert set(patterns(model)) == pruned
    assert [f.reason for f in findings if not f.applied] == reasons
    assert len(findings) == 3


DECLINED = {
    "short axis": (weights(3, 400), [5, 3], "the reduction axis has 3 input channels, fewer than m=4"),
    "rank 3": (
        weights(2, 64, 64),
        [2, 3, 64],
        "the constant has rank 3; N:M kernels read a matrix of rank 2",
    ),
    "zero": (np.zeros((64, 64), np.float32), [3, 64], "every weight is zero"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_declined_and_left_alone(case):
    weight, shape, reason = DECLINED[case]
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")
    model = model_of([node], {"W": weight}, inputs=[("x", shape)])
    result = PruneNM(2, 4)(model)
    assert [(f.outcome, f.reason) for f in result.findings] == [("declined", reason)] and not result.modified
    assert model.graph[0].domain == "" and list(model.graph.initializers) == ["W"]


def test_a_recognised_layer_is_pruned_further_or_left():
    model = three_layers()
    PruneNM(2, 4, 4)(model)
    again = PruneNM(2, 4, 4)(model)
    assert [f.reason for f in again.findings] == ["its weight has the pattern 2:4x4 already"] * 3
    assert not again.modified
    further = PruneNM(1, 4, 16)(model)
    assert [(f.before, f.after) for f in further.findings] == [("ai.sparsec.NMMatMul",) * 2] * 3
    assert set(patterns(model).values()) == {NM(1, 4, 16)}


def test_a_layer_that_has_the_pattern_unrecognised_loses_nothing():
    model = three_layers()
    PruneNM(2, 4, 4)(model)
    findings = PruneNM(3, 4, 4)(as_plain(model)).findings
    assert [f.reason for f in findings] == [
        "3:4x4 by magnitude: keeps 75.0 % of the weights and 100.0 % of their energy (sum of squares)"
    ] * 3


def test_grouped_convolution_and_few_channels(ort_run):
    W = weights(24, 16, 3, 3)
    model = model_of(
        [helper.make_node("Conv", ["x", "W"], ["y"], group=2, name="conv")],
        {"W": W},
        inputs=[("x", [1, 32, 5, 5])],
    )
    PruneNM(2, 4, 64)(model)
    assert patterns(model) == {"conv": NM(2, 4, 16)}  # 12 channels a group: a block of 16 holds them
    before = run(ort_run, model, x=weights(1, 32, 5, 5))["y"]
    RecogniseNM()(as_plain(model))
    assert patterns(model) == {"conv": NM(2, 4, 16)}
    np.testing.assert_array_equal(run(ort_run, model, x=weights(1, 32, 5, 5))["y"], before)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_stay_dense(dtype):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [3, 64])],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [3, 32])],
        [numpy_helper.from_array(weights(64, 32).astype(dtype), "W")],
    )
    model = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    (finding,) = PruneNM(2, 4, 4)(model).findings
    assert not finding.applied and list(model.graph.initializers) == ["W"]
    assert finding.reason.startswith(f"N:M kernels compute in float32, this layer in {np.dtype(dtype)}")


@pytest.mark.parametrize(
    "text",
    [
        "nm{n=2,m=4}",
        "nm{n=1,m=8,block=4,method=energy}",
        "nm{n=2,m=4,min_size=0,layers=enc*,skip=*head*|*embed*}",
    ],
)
def test_spelling_round_trips(text):
    passes = spec.parse(text, {"nm": PruneNM})
    assert spec.unparse(passes) == text


def test_example_parses():
    (pass_,) = spec.parse(PruneNM.EXAMPLE, {"nm": PruneNM})
    assert (pass_.n, pass_.m, pass_.block, pass_.skip) == (2, 4, 16, "*head*|*embed*")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 4, "m": 4}, "N:M pattern: 1 <= n < m is required, found n=4, m=4"),
        ({"block": 3}, "N:M pattern: block must be one of 1, 4, 8, 16, 32, 64, found block=3"),
        ({"method": "luck"}, "nm: method must be one of magnitude, energy, found 'luck'"),
        ({"min_size": -1}, "nm: min_size must be 0 or more, found -1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(PassError, match=message):
        PruneNM(**{"n": 2, "m": 4, **options})


@pytest.mark.parametrize("option", ["layers", "skip"])
def test_a_glob_that_matches_nothing_is_an_error(option):
    with pytest.raises(
        PassError,
        match=f"nm: {option}=decoder.* must match a layer with a constant weight; "
        "found encoder.0, encoder.1, head".replace("*", r"\*"),
    ):
        PruneNM(2, 4, **{option: "decoder.*"}).run(three_layers())
