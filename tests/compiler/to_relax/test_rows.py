"""Softmax, LogSoftmax, LayerNormalization, Sparsemax and Entmax over any axis."""

import numpy as np
import onnx
import pytest

RNG = np.random.default_rng(17)
SHAPES = [(1, 1), (7, 17), (3, 33, 5), (2, 1, 33), (2, 3, 7, 4), (17,)]
AXES = [(shape, axis) for shape in SHAPES for axis in range(-len(shape), len(shape))]


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32) * 3


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("shape", "axis"), AXES, ids=str)
def test_softmax(op, shape, axis, single_op, same_as_ort):
    feeds = {"x": array(*shape)}
    same_as_ort(single_op(op, feeds, axis=axis), feeds)


ROWS = {
    "equal": np.full((3, 17), 2.5),
    "zeros": np.zeros((3, 17)),
    "masked": np.where(np.arange(17) < 5, 1.0, -np.inf) * np.ones((3, 1)),
    "large": np.linspace(-1e4, 1e4, 51).reshape(3, 17),
    "huge": np.linspace(-3e38, 3e38, 51).reshape(3, 17),
    "tiny": np.linspace(-1e-30, 1e-30, 51).reshape(3, 17),
    "NaN": np.where(np.arange(51) == 20, np.nan, 1.0).reshape(3, 17),
    "all masked": np.where(np.arange(3)[:, None] == 1, -np.inf, 1.0) * np.ones((1, 17)),
    "Inf": np.where(np.arange(51) == 20, np.inf, 1.0).reshape(3, 17),
}


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("case", ROWS)
def test_softmax_of_special_rows(op, case, single_op, same_as_ort):
    feeds = {"x": ROWS[case].astype(np.float32)}
    same_as_ort(single_op(op, feeds), feeds)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_of_doubles(op, single_op, same_as_ort):
    feeds = {"x": array(7, 17).astype(np.float64)}
    same_as_ort(single_op(op, feeds, axis=0), feeds, relative=1e-7)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_of_old_opsets(op, single_op, same_as_ort):
    """Before opset 13 everything behind the axis was one row."""
    feeds = {"x": array(2, 3, 5)}
    same_as_ort(single_op(op, feeds, opset=11, axis=1), feeds)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("shape", "axis"), [case for case in AXES if case[0] != (1, 1)], ids=str)
def test_layer_normalization(shape, axis, bias, single_op, same_as_ort):
    part = shape[axis % len(shape) :]
    feeds = {"x": array(*shape), "scale": array(*part), "b": array(*part) if bias else None}
    model = single_op("LayerNormalization", feeds, constants=("scale", "b"), axis=axis)
    same_as_ort(model, {"x": feeds["x"]})


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.1])
def test_layer_normalization_epsilon(epsilon, single_op, same_as_ort):
    feeds = {"x": array(7, 33) * np.float32(0.05), "scale": array(33), "b": array(33)}
    same_as_ort(single_op("LayerNormalization", feeds, epsilon=epsilon), feeds)


def test_layer_normalization_of_a_large_mean(single_op, run_graph):
    """The deviation is taken from the mean, not as a difference of large squares."""
    x = (RNG.standard_normal((7, 33)) + 1000).astype(np.float32)
    feeds = {"x": x, "scale": np.ones(33, np.float32)}
    found = run_graph(single_op("LayerNormalization", feeds, constants=("scale",)), {"x": x}).outputs["y"]
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    assert np.abs(found - expected).max() < 2e-4  # one rounding of 1000 in float32 is 6e-5


@pytest.mark.parametrize("case", ["equal", "zeros", "NaN", "Inf"])
def test_layer_normalization_of_special_rows(case, single_op, same_as_ort):
    feeds = {"x": ROWS[case].astype(np.float32), "scale": array(17), "b": array(17)}
    model = single_op("LayerNormalization", feeds, constants=("scale", "b"))
    same_as_ort(model, {"x": feeds["x"]})


# Sparsemax, put in the place of softmax ------------------------------------------------------------------


def sparse_model(shape, axis, passes: str, op: str) -> onnx.ModelProto:
    import onnx_ir as ir

    from sparsec.passes import parse_pipeline, run_pipeline

    x = onnx.helper.make_tensor_value_info("x", 1, shape)
    y = onnx.helper.make_tensor_value_info("y", 1, shape)
    node = onnx.helper.make_node("Softmax", ["x"], ["y"], axis=axis, name="node")
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]))
    run_pipeline(model, parse_pipeline(passes))
    assert [n.op_type for n in model.graph] == [op]
    return ir.to_proto(model)


@pytest.mark.parametrize(("shape", "axis"), AXES, ids=str)
def test_sparsemax(shape, axis, run_graph, agree):
    import torch
    from entmax import sparsemax

    x = array(*shape)
    found = run_graph(sparse_model(shape, axis, "sparsemax{where=all}", "Sparsemax"), {"x": x}).outputs
    expected = sparsemax(torch.from_numpy(x).double(), dim=axis % len(shape)).numpy().astype(np.float32)
    agree(found, {"y": expected})


@pytest.mark.parametrize("case", ["equal", "zeros", "masked", "large", "tiny"])
def test_sparsemax_of_special_rows(case, run_graph, agree):
    import torch
    from entmax import sparsemax

    x = ROWS[case].astype(np.float32)
    found = run_graph(sparse_model(x.shape, -1, "sparsemax{where=all}", "Sparsemax"), {"x": x}).outputs
    expected = sparsemax(torch.from_numpy(x).double(), dim=-1).numpy().astype(np.float32)
    agree(found, {"y": expected})


@pytest.mark.parametrize(
    ("shape", "axis", "alpha"), [((7, 17), 0, 1.5), ((2, 3, 7, 4), 2, 1.25), ((3, 33), -1, 1.5)]
)
def test_entmax(shape, axis, alpha, run_graph, agree):
    import torch
    from entmax import entmax_bisect

    x = array(*shape)
    model = sparse_model(shape, axis, f"entmax{{alpha={alpha},where=all}}", "Entmax")
    expected = entmax_bisect(torch.from_numpy(x).double(), alpha, dim=axis, n_iter=60).numpy()
    agree(run_graph(model, {"x": x}).outputs, {"y": expected.astype(np.float32)})
