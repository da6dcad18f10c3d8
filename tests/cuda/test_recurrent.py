"""Recurrent layers on a GPU: a block for each sequence."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sparsec.runtime import load

STEPS, BATCH, WIDTH = 5, 3, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(kind: str, hidden: int, **attributes) -> bytes:
    rng = np.random.default_rng(0)
    both = 2 if attributes.get("direction") == "bidirectional" else 1
    shapes = {"w": (both, GATES[kind] * hidden, WIDTH), "r": (both, GATES[kind] * hidden, hidden)}
    shapes["b"] = (both, 2 * GATES[kind] * hidden)
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / 4).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    node = helper.make_node(kind, ["x", "w", "r", "b"], ["y", "h"], hidden_size=hidden, **attributes)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [STEPS, BATCH, WIDTH])
    outputs = [onnx.ValueInfoProto(name=name) for name in ("y", "h")]
    graph = helper.make_graph([node], "g", [x], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


@pytest.mark.parametrize(
    ("kind", "hidden", "attributes"),
    [
        ("LSTM", 33, {"direction": "bidirectional"}),
        ("GRU", 17, {"linear_before_reset": 0}),
        pytest.param("LSTM", 520, {}, marks=pytest.mark.slow),  # more units than threads
        pytest.param("GRU", 33, {"linear_before_reset": 1}, marks=pytest.mark.slow),
        pytest.param("RNN", 31, {"direction": "reverse"}, marks=pytest.mark.slow),
    ],
)
def test_it_is_what_onnx_runtime_computes(kind, hidden, attributes, driver, compile_for_gpu, ort_run):
    model = layer(kind, hidden, **attributes)
    compiled = compile_for_gpu(model)
    assert compiled.report["kernels"]["recurrent"] == (
        2 if "direction" in attributes and kind == "LSTM" else 1
    )
    feeds = {"x": np.random.default_rng(1).standard_normal((STEPS, BATCH, WIDTH), np.float32)}
    expected = ort_run(model, feeds)
    for order in range(3):
        driver.be(compiled.emulated, order=order)
        with load(compiled.path) as loaded:
            for name, found in loaded(feeds).items():
                np.testing.assert_allclose(found, expected[name], rtol=0, atol=2e-6, err_msg=name)
