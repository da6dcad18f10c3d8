"""What counts as agreement with ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler.check import Oracle
from sparsec.compiler.errors import CompileError


@pytest.fixture
def quantised():
    """Weights in int8 with scales, as weight-only quantisers write them: (model, feeds, what it computes)."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (256, 64)).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, 64).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [3, 256]), ("y", [3, 64]))
    ]
    constants = [numpy_helper.from_array(weight, "q"), numpy_helper.from_array(scale, "s")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    x = rng.standard_normal((3, 256)).astype(np.float32)
    return model.SerializeToString(), {"x": x}, (x @ (weight * scale.astype(np.float64))).astype(np.float32)


def test_quantised_weights_leave_activations_as_they_are(quantised, ort_run):
    model, feeds, wanted = quantised
    scale = np.abs(wanted).max()
    if np.abs(ort_run(model, feeds)["y"] - wanted).max() < 1e-4 * scale:
        pytest.skip("this ONNX Runtime does not quantise the activations of such a product")
    (difference,) = Oracle(model, feeds).require({"y": wanted}, "the test").values()
    assert difference.max_abs < 1e-5 * scale


@pytest.mark.parametrize("change", [lambda y: 2 * y, lambda y: -y, lambda y: 0 * y, lambda y: y + 1e-2])
def test_wrong_numbers_are_wrong_all_the_same(quantised, change):
    model, feeds, wanted = quantised
    with pytest.raises(CompileError, match="output 'y' of the test differs from ONNX Runtime by"):
        Oracle(model, feeds).require({"y": change(wanted)}, "the test")
