"""The first layer that differs is found, and named, when a converter is wrong."""

import numpy as np
import onnx
import onnx_ir as ir
from tvm import relax

from sparsec.compiler.locate import first_divergence
from sparsec.compiler.to_relax.converters import CONVERTERS


def model() -> ir.Model:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[2, 8] x) => (float[2, 8] y) {
        [first] a = MatMul(x, w)
        [second] b = Tanh(a)
        [third] y = MatMul(b, w)
    }"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


FEEDS = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)}


def test_wrong_layer_is_named(monkeypatch):
    def wrong(importer, node, inputs):
        return relax.op.multiply(relax.op.tanh(inputs[0]), relax.const(np.float32(1.01)))

    monkeypatch.setitem(CONVERTERS, ("", "Tanh"), wrong)
    op, node, difference = first_divergence(model(), FEEDS)
    assert (op, node) == ("Tanh", "second")
    assert not difference.within and 0.005 < difference.max_abs < 0.02


def test_nothing_differs():
    assert first_divergence(model(), FEEDS) is None
