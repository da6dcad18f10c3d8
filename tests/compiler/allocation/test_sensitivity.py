"""The change of the outputs against NumPy's."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.compiler.allocation.sensitivity import changes
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import find_layers

RNG = np.random.default_rng(0)


def test_one_layer_at_a_time(text_graph):
    proto = text_graph("(float[5,8] x) => (y) { a = MatMul(x, w1) y = Gemm<transB=1>(a, w2) }")
    w1, w2 = RNG.standard_normal((8, 6)).astype("f"), RNG.standard_normal((4, 6)).astype("f")
    for array, name in ((w1, "w1"), (w2, "w2")):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    layers = {node_name(layer.node): layer for layer in find_layers(model)}
    other = {name: RNG.standard_normal(layer.weight.shape).astype("f") for name, layer in layers.items()}
    feeds = [{"x": RNG.standard_normal((5, 8)).astype("f")} for _ in range(2)]
    found = changes(model, other, feeds, lambda line: None)
    first, second = other
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    y = x @ w1 @ w2.T
    for name, moved in ((first, x @ other[first][:, 0].T @ w2.T), (second, x @ w1 @ other[second][:, 0].T)):
        assert found[name] == pytest.approx(np.square(moved - y).sum() / np.square(y).sum(), rel=1e-5)
    assert changes(model, {n: layer.weight for n, layer in layers.items()}, feeds, lambda line: None) == {
        first: pytest.approx(0, abs=1e-12),
        second: pytest.approx(0, abs=1e-12),
    }
