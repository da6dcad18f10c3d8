"""Einsum of an activation and a weight becomes a matrix product with the numbers of ONNX Runtime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler.ingest import ingest

RNG = np.random.default_rng(3)
PRODUCT, MOVED = {"MatMul", "Reshape"}, {"MatMul", "Reshape", "Transpose"}

#: equation: shape of the activation, of the weight, the operators that may be left, is the weight first
CASES = {
    "bsk,kn->bsn": ((2, 3, 8), (8, 5), {"MatMul"}, False),
    "bsk,nk->bsn": ((2, 3, 8), (5, 8), {"MatMul"}, False),
    "...k,kn->...n": ((2, 3, 8), (8, 5), {"MatMul"}, False),
    "abhd,hdn->abn": ((2, 3, 4, 2), (4, 2, 5), PRODUCT, False),
    "abk,khd->abhd": ((2, 3, 8), (8, 4, 2), PRODUCT, False),
    "bchw,oc->bohw": ((2, 3, 4, 5), (6, 3), MOVED, False),
    "oc,bcl->bol": ((2, 3, 4), (6, 3), MOVED, True),
    "bk,k->b": ((4, 8), (8,), PRODUCT, False),
    # Something else than a matrix product.
    "bk,bk->bk": ((4, 8), (4, 8), {"Einsum", "Mul"}, False),
    "hbk,hkn->hbn": ((2, 3, 8), (2, 8, 5), {"Einsum"}, False),
    "bk,kn->b": ((3, 8), (8, 5), {"Einsum"}, False),
    "k,kn->n": ((8,), (8, 5), {"Einsum"}, False),
}


@pytest.mark.parametrize("equation", CASES)
def test_numbers(equation, tmp_path, ort_run):
    shape, weight, left, first = CASES[equation]
    names = ["w", "x"] if first else ["x", "w"]
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in (("x", shape), ("y", None))
    ]
    constant = numpy_helper.from_array(RNG.standard_normal(weight).astype("f"), "w")
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    feed = {"x": RNG.standard_normal(shape).astype("f")}
    found = ingest(path)
    assert {n.op_type for n in found.graph} <= left
    assert ("Einsum" in left) == ("MatMul" not in {n.op_type for n in found.graph})
    got = ort_run(ir.to_proto(found).SerializeToString(), feed)["y"]
    np.testing.assert_allclose(got, ort_run(path, feed)["y"], rtol=1e-5, atol=1e-6)
