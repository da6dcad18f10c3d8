"""The road as the compiler takes it: ingest, then passes; folding must leave every form recognisable."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.compiler.ingest import ingest
from sparsec.passes import run_pipeline

C = "float t = {0.3}, float nt = {-0.3}, float zero = {0}, float m = {0.5}"
FORMS = {
    "shrink": ("SoftThreshold", "y = Shrink <lambd=0.3, bias=0.3> (x)"),
    "thresholded relu": ("JumpRelu", "y = ThresholdedRelu <alpha=0.3> (x)"),
    "sign relu": ("SoftThreshold", "s = Sign(x) b = Abs(x) a = Sub(b, t) r = Relu(a) y = Mul(s, r)"),
    "two relus": (
        "SoftThreshold",
        "a = Sub(x, t) p = Relu(a) n = Neg(x) b = Sub(n, t) q = Relu(b) y = Sub(p, q)",
    ),
    "clipped": ("ClippedShiftedRelu", "a = Add(x, nt) r = Relu(a) y = Min(m, r)"),
    "where": ("HardThreshold", "b = Abs(x) c = Greater(b, t) y = Where(c, x, zero)"),
    "zeros like": ("JumpRelu", "c = Greater(x, t) s = Shape(x) z = ConstantOfShape(s) y = Where(c, x, z)"),
    "mask": ("JumpRelu", "c = Greater(x, t) k = Cast <to=1> (c) y = Mul(x, k)"),
    "sparsemax": (
        "Sparsemax",
        """last = Constant <value_ints = [-1]> ()
           l0 = Constant <value_int = -1> () i1 = Constant <value_int = 1> ()
           one = Constant <value_float = 1.0> () top = ReduceMax(x, last) z = Sub(x, top) sh = Shape(z)
           k = Gather(sh, last) s, i = TopK <axis = -1> (z, k) c = CumSum(s, l0) e = Sub(c, one)
           k0 = Squeeze(k) limit = Add(k0, i1) rr = Range(i1, limit, i1) r = Cast <to = 1> (rr)
           rs = Mul(r, s) sup = Greater(rs, e) b = Cast <to = 7> (sup) n = ReduceSum(b, last) j = Sub(n, i1)
           g = GatherElements <axis = -1> (e, j) nf = Cast <to = 1> (n) tau = Div(g, nf)
           d = Sub(z, tau) y = Relu(d)""",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_recognised_after_ingest(name, model_of, run_ort, op_types, tmp_path):
    op, body = FORMS[name]
    source = model_of(body, "float[N,3,8] x", "float[N,3,8] y", C)
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(source), path)
    model = ingest(path, {"x": (2, 3, 8)})
    findings = run_pipeline(model)
    assert op_types(model) == [op]
    assert [f.outcome for f in findings] == ["applied"]
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(run_ort(model, {"x": x}), run_ort(path, {"x": x}))
