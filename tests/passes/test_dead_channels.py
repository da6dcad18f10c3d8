"""Channels that carry nothing go, whatever constant they made; the outputs stay, and refusals say why."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.passes.dead_channels import RemoveDeadChannels

RNG = np.random.default_rng(0)
SILENT = [0, 5, 6, 16]  # of 17 channels, made by the first layer as a constant
UNREAD = [2, 5]  # read by the second layer with zeros


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def op(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=attributes.pop("name", kind.lower()), **attributes)


def model_of(nodes, x, constants, outputs=("y",)):
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ports, results, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


@pytest.fixture
def remove(ort_run):
    """Runs the pass; the outputs stay as they are and the shapes are right; -> (findings, shapes by name)."""

    def run(model, x):
        feeds = {"x": array(*x)}
        before = ort_run(ir.to_proto(model).SerializeToString(), feeds)
        findings = RemoveDeadChannels()(model).findings
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        for name, value in ort_run(proto.SerializeToString(), feeds).items():
            np.testing.assert_allclose(value, before[name], rtol=1e-5, atol=2e-5)
        return findings, {n.name: tuple(n.inputs[1].shape) for n in model.graph if len(n.inputs) > 1}

    return run


def pair(unread=True):
    """[32, 17] and [17, 9] with zero channels between."""
    first, second = array(32, 17), array(17, 9)
    first[:, SILENT] = 0
    if unread:
        second[UNREAD] = 0
    return first, second


@pytest.mark.parametrize(
    "activation", ["Relu", "Tanh", "Sigmoid", "Erf", "Abs", "Neg", "LeakyRelu", "Identity"]
)
def test_matmul_with_a_bias_behind_any_activation(activation, remove):
    first, second = pair()
    nodes = [
        op("MatMul", ["x", "P"], "a", name="first"),
        op("Add", ["a", "b"], "c", name="bias"),
        op(activation, ["c"], "d", name="act"),
        op("MatMul", ["d", "Q"], "e", name="second"),
        op("Add", ["e", "f"], "y", name="out"),
    ]
    constants = {"P": first, "b": array(17), "Q": second, "f": array(9)}
    (finding,), shapes = remove(model_of(nodes, [2, 3, 32], constants), [2, 3, 32])
    assert finding.reason == "5 of 17 output channels carry nothing to second: removed"
    assert (finding.node, finding.before, finding.after) == ("first", "MatMul", "MatMul of 12 channels")
    assert shapes["first"] == (32, 12) and shapes["bias"] == (12,) and shapes["second"] == (12, 9)


def test_gelu_as_it_is_exported(remove):
    """A value that is read twice, and scalars."""
    first, second = pair(unread=False)
    nodes = [
        op("Gemm", ["x", "P", "b"], "c", name="first", transB=1),
        op("Div", ["c", "root"], "d"),
        op("Erf", ["d"], "e"),
        op("Add", ["e", "one"], "f"),
        op("Mul", ["c", "f"], "g", name="product"),
        op("Mul", ["g", "half"], "h", name="halved"),
        op("Gemm", ["h", "Q", "z"], "y", name="second"),
    ]
    constants = {"P": first.T.copy(), "b": array(17), "Q": second, "z": array(9)}
    constants |= {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    (finding,), shapes = remove(model_of(nodes, [3, 32], constants), [3, 32])
    assert finding.applied and shapes["first"] == (13, 32) and shapes["second"] == (13, 9)


@pytest.mark.parametrize("pads, goes", [(0, 5), (1, 2)])
def test_a_constant_stops_at_the_border_of_a_padded_convolution(pads, goes, remove):
    """Of the channels that make a constant, only what the second layer does not read goes then."""
    first, second = pair()
    constants = {"P": first.T.reshape(17, 32, 1, 1).copy(), "b": np.ones(17, np.float32)}
    constants["Q"] = (second.T[:, :, None, None] * np.ones((1, 1, 3, 3))).astype(np.float32)
    nodes = [
        op("Conv", ["x", "P", "b"], "a", name="first"),
        op("Relu", ["a"], "r"),
        op("Conv", ["r", "Q"], "y", name="second", pads=[pads] * 4),
    ]
    (finding,), shapes = remove(model_of(nodes, [1, 32, 6, 6], constants), [1, 32, 6, 6])
    assert finding.reason.startswith(f"{goes} of 17") and shapes["second"] == (9, 17 - goes, 3, 3)


def test_without_a_bias_a_padded_convolution_loses_them_all(remove):
    first, second = pair()
    constants = {"P": first.T.reshape(17, 32, 1).copy(), "Q": second.T.reshape(9, 17, 1).copy()}
    nodes = [
        op("Conv", ["x", "P"], "a", name="first"),
        op("Relu", ["a"], "r"),
        op("Conv", ["r", "Q"], "y", name="second", pads=[1, 1]),
    ]
    (finding,), shapes = remove(model_of(nodes, [2, 32, 6], constants), [2, 32, 6])
    assert finding.reason.startswith("5 of 17") and shapes["first"] == (12, 32, 1)


def test_every_reader_counts(remove):
    first, second = pair()
    other = array(17, 4)
    other[5] = 0
    nodes = [
        op("MatMul", ["x", "P"], "a", name="first"),
        op("Relu", ["a"], "r"),
        op("MatMul", ["r", "Q"], "y", name="second"),
        op("MatMul", ["r", "R"], "z", name="third"),
    ]
    constants = {"P": first, "Q": second, "R": other}
    (finding,), shapes = remove(model_of(nodes, [3, 32], constants, ("y", "z")), [3, 32])
    assert finding.reason == "4 of 17 output channels carry nothing to second, third: removed"
    assert shapes == {"first": (32, 13), "second": (13, 9), "third": (13, 4)}


DECLINED = {
    "a residual": (
        op("Add", ["a", "s"], "d", name="sum"),
        "sum joins them with something that is no constant",
    ),
    "a softmax": (op("Softmax", ["a"], "d", name="soft"), "soft (Softmax) reads them"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_declined_with_the_reason(case, remove):
    between, reason = DECLINED[case]
    first, second = pair()
    nodes = [
        op("MatMul", ["x", "P"], "a", name="first"),
        op("MatMul", ["x", "S"], "s", name="side"),
        between,
        op("MatMul", ["d", "Q"], "y", name="second"),
        op("Relu", ["s"], "z"),
    ]
    constants = {"P": first, "S": array(32, 17), "Q": second}
    findings, shapes = remove(model_of(nodes, [3, 32], constants, ("y", "z")), [3, 32])
    assert [f.node for f in findings if not f.applied] == ["first"] and len(findings) == 1
    assert findings[0].reason.startswith(f"4 of 17 output channels make a constant, but stay: {reason}")
    assert shapes["first"] == (32, 17)


def test_an_output_of_the_model_is_kept(remove):
    first, second = pair()
    nodes = [op("MatMul", ["x", "P"], "a", name="first"), op("MatMul", ["a", "Q"], "y", name="second")]
    (finding,), _ = remove(model_of(nodes, [3, 32], {"P": first, "Q": second}, ("y", "a")), [3, 32])
    assert finding.reason.endswith("but stay: a is an output of the model")


def test_a_pattern_that_is_worth_more_is_kept(remove):
    first, second = array(32, 64), array(64, 64)
    first[:, 3] = 0
    for group in range(0, 64, 4):  # 2:4x32: without input 3 nothing is aligned
        order = group + RNG.permutation(4)
        second[order[:2], :32] = second[order[2:], 32:] = 0
    nodes = [op("MatMul", ["x", "P"], "a", name="first"), op("MatMul", ["a", "Q"], "y", name="second")]
    (finding,), shapes = remove(model_of(nodes, [3, 32], {"P": first, "Q": second}), [3, 32])
    assert finding.reason == "1 of 64 output channels could go, but stay for the pattern 2:4x32"
    assert shapes["second"] == (64, 64)


def test_nothing_to_do(remove):
    nodes = [op("MatMul", ["x", "P"], "a", name="first"), op("MatMul", ["a", "Q"], "y", name="second")]
    assert remove(model_of(nodes, [3, 32], {"P": array(32, 17), "Q": array(17, 9)}), [3, 32])[0] == ()
