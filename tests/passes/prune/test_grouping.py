"""Channels put in order for a pattern, in whole models: the function stays and the error falls."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler.prune import PruneRequest, prune_model

RNG = np.random.default_rng(0)


@pytest.fixture
def mlp(tmp_path):
    """x `[16, 24]` -> 32 -> Relu -> 20; rows of the first weight are of two kinds that want different
    columns, mixed, and of the second one's columns the first half matters. And its calibration data."""
    first = RNG.standard_normal((24, 32)) * 0.1
    kind = RNG.permutation(np.repeat([0, 1], 16))
    first += np.where((np.arange(24)[:, None] % 4 < 2) == (kind == 0), RNG.standard_normal((24, 32)), 0)
    second = RNG.standard_normal((32, 20)) * np.where(np.arange(32) < 16, 1, 0.1)[:, None]
    constants = {"P": first, "b": RNG.standard_normal(32), "Q": second}
    nodes = [
        helper.make_node("MatMul", ["x", "P"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b"], ["c"], name="bias"),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("MatMul", ["d", "Q"], ["y"], name="second"),
    ]
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", [16, 24]), ("y", [16, 20]))
    ]
    weights = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "g", *ports, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = RNG.standard_normal((320, 24)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=x)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model)), str(tmp_path / "calib.npz"), x[:16]


def prune(mlp, ort_run, **asked):
    model, calib, x = mlp
    model = model.clone()
    request = PruneRequest(asked.pop("pattern", "2:4x16"), "sparsegpt", calib, min_size=0, **asked)
    findings, layers = prune_model(model, request, lambda line: None)
    dense = ort_run(ir.to_proto(mlp[0]).SerializeToString(), {"x": x})["y"]
    error = np.square(ort_run(ir.to_proto(model).SerializeToString(), {"x": x})["y"] - dense).sum()
    return error / np.square(dense).sum(), [f for f in findings if f.pass_name == "group"], layers


def test_both_layers_lose_less(mlp, ort_run):
    plain, none, _ = prune(mlp, ort_run, group=False)
    grouped, (told, output), layers = prune(mlp, ort_run)
    assert none == []
    assert grouped < 0.5 * plain
    assert told.applied and told.node == "first"
    assert told.reason.startswith("32 channels for first, second: output error ")
    assert not output.applied
    assert output.reason == "channels stay in order: y is an output of the model"
    assert {layer["node"] for layer in layers} == {"first", "second"}


def test_columns_alone_are_ordered_for_rows_of_their_own(mlp, ort_run):
    plain, _, _ = prune(mlp, ort_run, pattern="2:4", group=False)
    grouped, (told,), _ = prune(mlp, ort_run, pattern="2:4")
    assert told.applied and told.reason.startswith("32 channels for second: ")
    assert grouped < plain


def test_rows_are_grouped_for_an_unstructured_pattern_that_they_share(mlp, ort_run):
    plain, _, _ = prune(mlp, ort_run, pattern="50%x16", group=False)
    grouped, (told, _), _ = prune(mlp, ort_run, pattern="50%x16")
    assert told.applied and told.reason.startswith("32 channels for first: ")
    assert grouped < plain


def test_where_nothing_is_shared_there_is_nothing_to_order(mlp, ort_run):
    _, findings, _ = prune(mlp, ort_run, pattern="50%")
    assert findings == []


def test_only_the_layers_that_were_named_count(mlp, ort_run):
    _, (told,), _ = prune(mlp, ort_run, layers="second", pattern="2:4")
    assert told.reason.startswith("32 channels for second: ")
