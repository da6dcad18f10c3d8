"""Networks with a unit of several layers, and data for them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.compiler.ingest import ingest

#: Attention whose queries, keys and values are one unit, then two layers.
TRANSFORMER = """(float[1,9,32] x) => (float[1,9,32] y) {
    q0 = MatMul(x, wq) q2 = Reshape(q0, heads) q = Transpose<perm = [0, 2, 1, 3]>(q2)
    k1 = MatMul(x, wk) k2 = Reshape(k1, heads) k = Transpose<perm = [0, 2, 3, 1]>(k2)
    v1 = MatMul(x, wv) v2 = Reshape(v1, heads) v = Transpose<perm = [0, 2, 1, 3]>(v2)
    s = MatMul(q, k) p = Softmax(s) o = MatMul(p, v)
    o1 = Transpose<perm = [0, 2, 1, 3]>(o) o2 = Reshape(o1, flat) o3 = MatMul(o2, w4)
    n = LayerNormalization(o3, ones) m = MatMul(n, w5) t = Tanh(m) y = MatMul(t, w6)
}"""
CONVOLUTIONS = """(float[1,3,9,9] x) => (float[1,10] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, c1) b = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(b, c2) d = Add(c, b)
    e = Relu(d) f = Conv(e, c3) g = GlobalAveragePool(f) h = Flatten(g) y = Gemm<transB = 1>(h, w, bias)
}"""
SHAPES = {
    **dict.fromkeys(("wq", "wk", "wv", "w4", "w5", "w6"), (32, 32)),
    "c1": (17, 3, 3, 3),
    "c2": (17, 17, 3, 3),
    "c3": (33, 17, 1, 1),
    "w": (10, 33),
    "bias": (10,),
}


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """``network(text) -> (path of the ONNX file, path of 8 samples)``"""
    folder = tmp_path_factory.mktemp("networks")

    def build(text: str):
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
        rng = np.random.default_rng(17)
        values = {n: rng.standard_normal(s) / np.sqrt(np.prod(s[1:])) for n, s in SHAPES.items()}
        values = {name: array.astype(np.float32) for name, array in values.items()}
        values |= {"ones": np.ones(32, "f"), "heads": np.array([1, 9, 2, 16]), "flat": np.array([1, 9, 32])}
        read = {name for node in proto.graph.node for name in node.input}
        for name in sorted(read & set(values)):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values[name], name))
        for node in proto.graph.node:
            node.name = node.output[0]
        shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
        path, data = folder / f"{len(text)}.onnx", folder / f"{len(text)}.npz"
        onnx.save(onnx.shape_inference.infer_shapes(proto), path)
        np.savez(data, x=rng.standard_normal((8, *shape[1:])).astype(np.float32))
        return path, data

    return build


@pytest.fixture(scope="session")
def transformer(network) -> tuple[ir.Model, object]:
    path, data = network(TRANSFORMER)
    return ingest(path), data


@pytest.fixture(scope="session")
def convolutions(network) -> tuple[ir.Model, object]:
    path, data = network(CONVOLUTIONS)
    return ingest(path), data
