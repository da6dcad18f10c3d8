"""Small layers with correlated inputs, and what calibration sums up of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.passes.prune import Moments, pose


@pytest.fixture
def layer():
    """``layer(rows, K, ...)`` -> (x `[samples, K]`, y `[samples, N]`, dense weight, bias)."""

    def make(outputs, inputs, samples=200, seed=0, noise=0.1):
        rng = np.random.default_rng(seed)
        mix = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs) + 0.5 * np.eye(inputs)
        x = rng.standard_normal((samples, inputs)) @ mix + rng.standard_normal(inputs)
        weight, bias = rng.standard_normal((outputs, inputs)), rng.standard_normal(outputs)
        y = x @ weight.T + bias + noise * rng.standard_normal((samples, outputs))
        return x, y, weight, bias

    return make


@pytest.fixture
def problem(layer):
    """``problem(N, K)``: the least-squares problem of such a layer, its bias free."""

    def make(outputs, inputs, seed=0, damping=0.01, free_bias=True):
        x, y, weight, bias = layer(outputs, inputs, seed=seed)
        moments = Moments.empty(inputs, outputs)
        moments.add(x, y)
        return pose(moments, weight, free_bias=free_bias, bias=bias, damping=damping)

    return make


@pytest.fixture
def mlp_of(tmp_path):
    """``mlp_of(first, bias, second, x)``: 16 rows -> first + bias -> Relu -> second, and ``x`` in a file."""

    def make(first, bias, second, x):
        nodes = [
            helper.make_node("MatMul", ["x", "P"], ["a"], name="first"),
            helper.make_node("Add", ["a", "b"], ["c"], name="bias"),
            helper.make_node("Relu", ["c"], ["d"], name="relu"),
            helper.make_node("MatMul", ["d", "Q"], ["y"], name="second"),
        ]
        ports = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16, size])]
            for name, size in (("x", len(first)), ("y", second.shape[1]))
        ]
        weights = {"P": first, "b": bias, "Q": second}
        constants = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()]
        graph = helper.make_graph(nodes, "g", *ports, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        np.savez(tmp_path / "calib.npz", x=x)
        return onnx.shape_inference.infer_shapes(model), str(tmp_path / "calib.npz")

    return make
