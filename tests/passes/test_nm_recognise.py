"""N:M weights are found in every layout of the constant, and the numbers stay the same to the last bit."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.passes import PassError
from sparsec.passes.nm_recognise import RecogniseNM

F = TensorProto.FLOAT


def sparse(k, out, n=2, m=4, block=1, seed=0):
    """[k, out]: in each group of m rows n survive, drawn anew for each block of columns."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((k, out)).astype(np.float32)
    for first in range(0, out, block):
        for base in range(0, k - m + 1, m):
            weight[base + rng.permutation(m)[n:], first : first + block] = 0
    return weight


def model_of(nodes, inputs, constants, outputs=("y",), opset=20):
    """A checked onnx_ir model; unnamed nodes get their operator's name in lower case."""
    for node in nodes:
        node.name = node.name or node.op_type.lower()
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(k, F, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(o, F, None) for o in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


@pytest.fixture
def recognise(ort_run):
    """Runs the pass, holds that the model is valid and gives the same bits; -> (findings, nodes by name)."""

    def run(model, inputs):
        rng = np.random.default_rng(1)
        feeds = {k: rng.standard_normal(v).astype(np.float32) for k, v in inputs.items()}
        before = ort_run(ir.to_proto(model).SerializeToString(), feeds)
        result = RecogniseNM()(model)
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        after = ort_run(proto.SerializeToString(), feeds)
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)
        assert result.modified == any(f.applied for f in result.findings)
        return result.findings, {n.name: n for n in model.graph}

    return run


def pattern(node):
    assert node.domain == "ai.sparsec"
    return node.op_type, *(node.attributes[k].value for k in ("n", "m", "block"))


def test_matmul(recognise):
    inputs = {"x": [2, 3, 32]}
    model = model_of([helper.make_node("MatMul", ["x", "W"], ["y"])], inputs, {"W": sparse(32, 24)})
    (finding,), nodes = recognise(model, inputs)
    assert pattern(nodes["matmul"]) == ("NMMatMul", 2, 4, 1)
    assert (finding.pass_name, finding.node, finding.outcome) == ("recognise-nm", "matmul", "applied")
    assert finding.reason == "2:4: keeps 50.0 % of the weights"
    assert (finding.before, finding.after) == ("MatMul", "ai.sparsec.NMMatMul")
    assert list(model.graph.initializers) == ["W"]
    assert ("ai.sparsec", "NMMatMul", "") in model.functions and model.opset_imports["ai.sparsec"] == 1


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm_keeps_its_attributes(trans, bias, recognise):
    weight = sparse(32, 24, 1, 8, 4)
    inputs = {"x": [32, 3]}
    constants = {
        "W": weight.T.copy() if trans else weight,
        **({"c": np.ones(24, np.float32)} if bias else {}),
    }
    node = helper.make_node("Gemm", ["x", *constants], ["y"], transA=1, transB=trans, alpha=0.5, beta=3.0)
    (finding,), nodes = recognise(model_of([node], inputs, constants), inputs)
    assert pattern(nodes["gemm"]) == ("NMGemm", 1, 8, 4)
    assert finding.reason == "1:8x4: keeps 12.5 % of the weights"
    assert nodes["gemm"].attributes["alpha"].value == 0.5 and nodes["gemm"].attributes["transA"].value == 1


def test_gemm_without_attributes(recognise):
    inputs = {"x": [3, 32]}
    model = model_of([helper.make_node("Gemm", ["x", "W"], ["y"])], inputs, {"W": sparse(32, 24)})
    _, nodes = recognise(model, inputs)
    assert pattern(nodes["gemm"]) == ("NMGemm", 2, 4, 1) and set(nodes["gemm"].attributes) == {
        "n",
        "m",
        "block",
    }


@pytest.mark.parametrize(
    "kernel, group, attributes",
    [
        ([3, 3], 1, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ([1, 1], 1, {}),
        ([3, 3], 2, {"dilations": [2, 2], "kernel_shape": [3, 3]}),
        ([2, 3], 1, {"auto_pad": "SAME_UPPER"}),
        ([5], 1, {"pads": [2, 2]}),
    ],
)
def test_conv(kernel, group, attributes, recognise):
    out, k, taps = 16, 16, int(np.prod(kernel))
    weight = np.stack([sparse(k, out, 2, 4, 4, seed=t) for t in range(taps)]).transpose(2, 1, 0)
    weight = np.ascontiguousarray(weight.reshape(out, k, *kernel))
    inputs = {"x": [2, k * group, *[9] * len(kernel)]}
    constants = {"W": weight, "b": np.ones(out, np.float32)}
    attributes = {**attributes, **({"group": group} if group > 1 else {})}
    node = helper.make_node("Conv", ["x", "W", "b"], ["y"], **attributes)
    _, nodes = recognise(model_of([node], inputs, constants), inputs)
    assert pattern(nodes["conv"]) == ("NMConv", 2, 4, 4)


def test_depthwise_conv_has_no_axis_to_be_sparse_along(recognise):
    inputs = {"x": [1, 16, 9, 9]}
    weight = sparse(9, 16, 1, 3).T.reshape(16, 1, 3, 3).copy()
    model = model_of([helper.make_node("Conv", ["x", "W"], ["y"], group=16)], inputs, {"W": weight})
    (finding,), nodes = recognise(model, inputs)
    assert finding.reason == "the reduction axis has 1 input channel: an N:M group needs 2"
    assert nodes["conv"].domain == "" and not model.functions


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array), name=f"make {name}")


def op(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


W = sparse(32, 24)
LAYOUTS = {
    "Constant node": ([constant("w", W)], {}),
    "Identity": ([op("Identity", ["W"], "w")], {"W": W}),
    "Transpose": ([op("Transpose", ["W"], "w", perm=[1, 0])], {"W": W.T.copy()}),
    "Transpose without perm": ([op("Transpose", ["W"], "w")], {"W": W.T.copy()}),
    "Reshape": ([op("Reshape", ["W", "s"], "w")], {"W": W.reshape(4, 8, 24), "s": np.array([-1, 24])}),
    "Reshape with 0": ([op("Reshape", ["W", "s"], "w")], {"W": W.reshape(32, 4, 6), "s": np.array([0, -1])}),
    "Cast": ([op("Cast", ["W"], "w", to=F)], {"W": W.astype(np.float16)}),
    "Mul by a mask": (
        [op("Mul", ["W", "mask"], "w")],
        {"W": np.where(W == 0, np.float32(7), W), "mask": (W != 0).astype(np.float32)},
    ),
    "Constant, Cast, Reshape, Transpose": (
        [
            constant("a", W.T.astype(np.float64).reshape(-1)),
            constant("s", np.array([24, 32])),
            op("Cast", ["a"], "b", to=F),
            op("Reshape", ["b", "s"], "c"),
            op("Transpose", ["c"], "w", perm=[1, 0]),
        ],
        {},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_constant_becomes_an_initializer(layout, recognise):
    nodes, constants = LAYOUTS[layout]
    inputs = {"x": [3, 32]}
    model = model_of([*nodes, op("MatMul", ["x", "w"], "y")], inputs, constants)
    (finding,), nodes = recognise(model, inputs)
    assert finding.applied and list(nodes) == ["matmul"] and pattern(nodes["matmul"])[1:] == (2, 4, 1)
    weight = nodes["matmul"].inputs[1]
    assert weight.is_initializer()
    assert list(model.graph.initializers) == [weight.name]
    expected = W.astype(np.float16).astype(np.float32) if layout == "Cast" else W
    np.testing.assert_array_equal(weight.const_value.numpy(), expected)


def test_reshape_that_allows_zero_keeps_its_meaning(recognise):
    inputs = {"x": [3, 32]}
    nodes = [op("Reshape", ["W", "s"], "w", allowzero=1), op("MatMul", ["x", "w"], "y")]
    model = model_of(nodes, inputs, {"W": W.reshape(-1), "s": np.array([32, 24])})
    _, nodes = recognise(model, inputs)
    assert pattern(nodes["matmul"]) == ("NMMatMul", 2, 4, 1)


def test_shared_weight_stays_one(recognise):
    inputs = {"x": [3, 32], "z": [5, 32]}
    nodes = [
        op("Transpose", ["W"], "w", perm=[1, 0]),
        op("MatMul", ["x", "w"], "a", name="first"),
        op("MatMul", ["z", "w"], "b", name="second"),
        op("Gemm", ["z", "W"], "c", transB=1),
    ]
    model = model_of(nodes, inputs, {"W": W.T.copy()}, outputs=("a", "b", "c"))
    findings, nodes = recognise(model, inputs)
    assert [f.applied for f in findings] == [True] * 3
    assert nodes["first"].inputs[1] is nodes["second"].inputs[1]
    assert nodes["gemm"].inputs[1].name == "W" and len(model.graph.initializers) == 2


def test_the_same_weight_may_fit_one_way_only(recognise):
    weight = sparse(32, 32)
    inputs = {"x": [3, 32]}
    nodes = [op("Gemm", ["x", "W"], "a", name="along"), op("Gemm", ["x", "W"], "b", name="across", transB=1)]
    model = model_of(nodes, inputs, {"W": weight}, outputs=("a", "b"))
    (along, across), nodes = recognise(model, inputs)
    assert along.applied and not across.applied
    assert across.reason == (
        "the pattern 2:4 runs along output channels; it must run along the input channels: "
        "prune along dim 1 of a torch weight [out, in]"
    )
    assert nodes["across"].op_type == "Gemm" and across.before == across.after == "Gemm"


def test_second_run_changes_nothing(recognise):
    inputs = {"x": [3, 32]}
    model = model_of([op("MatMul", ["x", "W"], "y")], inputs, {"W": W})
    recognise(model, inputs)
    assert recognise(model, inputs)[0] == ()


def test_inside_a_subgraph(recognise):
    def branch(name, weight):
        node = op("MatMul", ["x", name], f"{name}_y", name=f"in {name}")
        out = helper.make_tensor_value_info(f"{name}_y", F, None)
        return helper.make_graph([node], name, [], [out], [numpy_helper.from_array(weight, name)])

    choose = helper.make_node(
        "If", ["cond"], ["y"], then_branch=branch("t", W), else_branch=branch("e", sparse(32, 24, 1, 4))
    )
    make = op("Greater", ["s", "zero"], "cond")
    inputs = {"x": [3, 32], "s": []}
    model = model_of([make, choose], inputs, {"zero": np.float32(0)})
    findings, _ = recognise(model, inputs)
    assert {(f.node, f.reason[:3]) for f in findings} == {("in t", "2:4"), ("in e", "1:4")}


def test_tail_is_told(recognise):
    inputs = {"x": [3, 30]}
    model = model_of([op("MatMul", ["x", "W"], "y")], inputs, {"W": sparse(30, 24)})
    (finding,), _ = recognise(model, inputs)
    assert finding.reason == (
        "2:4: keeps 53.3 % of the weights; the last 2 of 30 inputs make no group of 4 and stay dense: "
        "with 28 or 32 inputs none would"
    )


DECLINED = {
    "left MatMul": (
        "MatMul",
        ["W", "x"],
        {},
        W.T,
        [32, 3],
        "the constant is the left operand; N:M kernels read",
    ),
    "left Gemm": ("Gemm", ["W", "x"], {"transA": 1}, W, [32, 3], "on the right; its zeros: 2:4"),
    "rank 3": (
        "MatMul",
        ["x", "W"],
        {},
        np.stack([W, W]),
        [2, 3, 32],
        "the constant has rank 3; N:M kernels read",
    ),
    "rank 1": (
        "MatMul",
        ["x", "W"],
        {},
        sparse(64, 1)[:, 0],
        [3, 64],
        "the constant has rank 1; N:M kernels read",
    ),
    "three axes": (
        "Conv",
        ["x", "W"],
        {},
        np.stack([W.T] * 8, -1).reshape(24, 32, 2, 2, 2),
        [1, 32, 4, 4, 4],
        "N:M kernels convolve along 1 or 2 axes, this layer along 3; its zeros: 2:4",
    ),
    "a vector": ("MatMul", ["x", "W"], {}, W, [32], "the input is a single vector; N:M kernels take rows"),
    "few weights": ("MatMul", ["x", "W"], {}, sparse(8, 4), [3, 8], "2:4x4, but 32 weights are too few"),
    "all zero": ("MatMul", ["x", "W"], {}, 0 * W, [3, 32], "every weight is zero"),
    "scattered": (
        "MatMul",
        ["x", "W"],
        {},
        np.where(np.random.default_rng(0).random((64, 64)) < 0.3, 0, np.float32(1)),
        [3, 64],
        "of the weights are zero, but scattered",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_declined(case, recognise):
    kind, names, attributes, weight, shape, reason = DECLINED[case]
    weight = np.ascontiguousarray(weight) if case != "few weights" else sparse(8, 4, block=4)
    inputs = {"x": shape}
    model = model_of([op(kind, names, "y", **attributes)], inputs, {"W": weight})
    (finding,), nodes = recognise(model, inputs)
    assert not finding.applied and reason in finding.reason
    assert (
        nodes[kind.lower()].domain == "" and not model.functions and "ai.sparsec" not in model.opset_imports
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups, recognise):
    inputs = {"x": [1, 32, 5, 5]}
    taps = [
        np.concatenate([sparse(32 // groups, 24, 1, 8, 8, seed=9 * g + t) for g in range(groups)])
        for t in range(9)
    ]
    weight = np.stack(taps, -1).reshape(32, 24, 3, 3)
    node = op("ConvTranspose", ["x", "W"], "y", group=groups, strides=[2, 2])
    _, nodes = recognise(model_of([node], inputs, {"W": weight}), inputs)
    assert pattern(nodes["convtranspose"]) == ("NMConvTranspose", 1, 8, 8)
    assert nodes["convtranspose"].attributes["strides"].value == (2, 2)


def test_recurrent_weights_are_told(recognise):
    inputs = {"x": [5, 1, 16]}
    constants = {"W": sparse(16, 4 * 8).T[None].copy(), "R": np.ones((1, 4 * 8, 8), np.float32)}
    node = op("LSTM", ["x", "W", "R"], "y", hidden_size=8)
    (finding,), _ = recognise(model_of([node], inputs, constants), inputs)
    assert finding.reason == "no N:M kernel computes LSTM, so it runs dense; its zeros: 2:4"


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_told(dtype):
    ports = [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [3, 32])]
    ports.append(helper.make_tensor_value_info("y", ports[0].type.tensor_type.elem_type, None))
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")
    graph = helper.make_graph(
        [node], "g", ports[:1], ports[1:], [numpy_helper.from_array(W.astype(dtype), "W")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    (finding,) = RecogniseNM()(model).findings
    assert finding.reason == (
        f"N:M kernels compute in float32, this layer in {np.dtype(dtype)}; convert the model to float32; "
        "its zeros: 2:4"
    )


@pytest.mark.parametrize("zero", [0, 7])
def test_integer_weights_are_told(zero):
    weight = (np.sign(W) * 5 + zero).astype(np.uint8 if zero else np.int8)
    ports = [helper.make_tensor_value_info("x", TensorProto.UINT8, [3, 32])]
    ports.append(helper.make_tensor_value_info("y", TensorProto.INT32, [3, 24]))
    constants = {"W": weight, "z": np.array(0, np.uint8), "o": np.array(zero, weight.dtype)}
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    node = helper.make_node("MatMulInteger", ["x", "W", "z", "o"], ["y"], name="layer")
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (finding,) = RecogniseNM()(ir.from_proto(model)).findings
    assert finding.reason == "no N:M kernel computes MatMulInteger, so it runs dense; its zeros: 2:4"


NEAR = (
    "99.97 % of groups are 2:4; 1 group of 4,096 has up to 4 non-zeros: "
    "prune them with nm{n=2,m=4,block=1} or retrain"
)


def test_outliers_are_kept_by_a_longer_group(recognise):
    weight = sparse(256, 64)
    weight[:4, 0] = 1
    inputs = {"x": [3, 256]}
    (finding,), nodes = recognise(model_of([op("MatMul", ["x", "W"], "y")], inputs, {"W": weight}), inputs)
    assert finding.applied
    assert finding.reason == f"34:64: keeps 53.1 % of the weights, outliers among them; {NEAR}"
    assert pattern(nodes[finding.node]) == ("NMMatMul", 34, 64, 1)


def test_outliers_that_lie_too_close_are_declined_with_the_count(recognise):
    """All four of one group: with 16 inputs no longer group has room for them."""
    weight = sparse(16, 1024)
    weight[:4, 0] = 1
    inputs = {"x": [3, 16]}
    (finding,), _ = recognise(model_of([op("MatMul", ["x", "W"], "y")], inputs, {"W": weight}), inputs)
    assert not finding.applied and finding.reason == NEAR


@pytest.mark.parametrize(
    ("zeros", "block", "expected"),
    [(0.9, 1, (7, 64, 1, 1)), (0.9, 4, (7, 64, 4, 1)), (0.65, 1, (23, 64, 1, 1)), (0.5, 1, None)],
)
def test_unstructured(zeros, block, expected, recognise):
    """Mostly zeros without a pattern: told as scattered, with the share of the non-zeros in 64ths."""
    rng = np.random.default_rng(4)
    kept = np.arange(64 * 96 // block) >= zeros * (64 * 96 // block)
    kept = rng.permutation(kept).reshape(96 // block, 64).repeat(block, axis=0)
    weight = np.where(kept, rng.uniform(1, 2, (96, 64)), 0).T.astype(np.float32)
    inputs = {"x": [3, 64]}
    model = model_of([helper.make_node("MatMul", ["x", "W"], ["y"])], inputs, {"W": weight})
    (finding,), nodes = recognise(model, inputs)
    if expected is None:
        assert "scattered" not in nodes["matmul"].attributes
        return
    node = nodes["matmul"]
    assert (*pattern(node)[1:], node.attributes["scattered"].value) == expected
    shared = ", shared by 4 outputs" if block > 1 else ""
    assert finding.reason.startswith(f"unstructured zeros{shared}: keeps {100 * (1 - zeros):.1f} %")


def test_nan_weight_is_kept(recognise):
    weight = W.copy()
    weight[np.flatnonzero(weight[:, 0])[0], 0] = np.nan
    inputs = {"x": [3, 32]}
    model = model_of(
        [op("MatMul", ["x", "W"], "y")], inputs, {"W": np.where(weight == 0, np.float32(-0.0), weight)}
    )
    (finding,), _ = recognise(model, inputs)
    assert finding.reason.startswith("2:4: ")


@pytest.mark.parametrize(
    "model_parts",
    [
        ([op("MatMul", ["x", "W"], "y")], {"x": [3, 32]}, {"W": W + 3}),
        ([op("MatMul", ["x", "z"], "y")], {"x": [3, 32], "z": [32, 3]}, {}),
        (
            [
                op("MatMul", ["x", "w"], "y"),
            ],
            {"x": [3, 32], "w": [32, 24]},
            {"w": W},
        ),
    ],
    ids=["dense", "no constant", "initializer that is an input"],
)
def test_nothing_to_say(model_parts, recognise):
    nodes, inputs, constants = model_parts
    findings, _ = recognise(model_of(nodes, inputs, constants), inputs)
    assert findings == ()


def test_an_old_opset_is_named():
    model = model_of([op("MatMul", ["x", "W"], "y")], {"x": [3, 32]}, {"W": W}, opset=13)
    with pytest.raises(PassError, match="operators need opset 18 or newer, the model imports 13"):
        RecogniseNM().run(model)
