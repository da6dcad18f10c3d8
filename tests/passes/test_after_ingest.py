"""The road as the compiler takes it: ingest, then passes; folding must leave every form recognisable."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

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


def two_of_four(rows, columns, seed=0):
    """``[rows, columns]``: two of each four rows, drawn anew for each column."""
    rng = np.random.default_rng(seed)
    weight = rng.choice([-1, 1], (rows, columns)) * rng.uniform(1, 2, (rows, columns))
    groups = weight.reshape(-1, 4, columns)
    np.put_along_axis(groups, rng.random(groups.shape).argsort(axis=1)[:, :2], 0, axis=1)
    return weight.astype(np.float32)


W = two_of_four(64, 48)
NOISY = np.where(W == 0, np.float32(0.1) * two_of_four(64, 48, 1) + np.float32(0.05), W)
MASK = W != 0
SCALE = np.linspace(0.01, 0.02, 48).astype(np.float32)
CODES = np.round(W / SCALE).astype(np.int16)
# What training and quantisation leave behind for the weight: body that makes w, constants.
EXPORTED = {
    "mask times weight": ("w = Mul(p, k)", {"p": NOISY, "k": MASK.astype(np.float32)}),
    "weight times cast of a boolean mask": ("c = Cast <to=1> (k) w = Mul(c, p)", {"p": NOISY, "k": MASK}),
    "masked_fill": ("w = Where(k, zero, p)", {"p": NOISY, "k": ~MASK, "zero": np.float32(0)}),
    "gradual magnitude: a threshold of the weight": (
        "a = Abs(p) c = Greater(a, t) d = Cast <to=1> (c) w = Mul(p, d)",
        {"p": NOISY, "t": np.float32(0.5)},
    ),
    "STR: sign(p) relu(|p| - sigmoid(s))": (
        "a = Abs(p) t = Sigmoid(s) b = Sub(a, t) r = Relu(b) g = Sign(p) w = Mul(g, r)",
        {"p": NOISY, "s": np.float32(0.0)},
    ),
    "AutoSparse: a threshold for each output channel": (
        "a = Abs(p) t = Sigmoid(s) b = Sub(a, t) r = Relu(b) g = Sign(p) w = Mul(g, r)",
        {"p": NOISY, "s": np.linspace(-0.5, 0.5, 48).astype(np.float32)},
    ),
    "PDP: a soft mask, snapped": (
        """q = Mul(p, p) e = Sub(q, t) f = Div(e, temperature) m = Sigmoid(f) h = Greater(m, half)
           c = Cast <to=1> (h) n = Mul(m, c) w = Mul(n, p)""",
        {"p": NOISY, "t": np.float32(0.25), "temperature": np.float32(0.1), "half": np.float32(0.5)},
    ),
    "half precision": ("w = Cast <to=1> (p)", {"p": W.astype(np.float16)}),
    "bfloat16": (
        "w = Cast <to=1> (p)",
        {"p": onnx.helper.make_tensor("p", onnx.TensorProto.BFLOAT16, W.shape, W.ravel())},
    ),
    "int8 with a scale for each channel": (
        "w = DequantizeLinear <axis=1> (p, s)",
        {"p": CODES.astype(np.int8) // 2, "s": 2 * SCALE},
    ),
    "uint8 with a zero point": (
        "w = DequantizeLinear <axis=1> (p, s, z)",
        {"p": (CODES // 2 + 128).astype(np.uint8), "s": 2 * SCALE, "z": np.full(48, 128, np.uint8)},
    ),
    "int8, transposed": (
        "d = DequantizeLinear <axis=0> (p, s) w = Transpose(d)",
        {"p": (CODES // 2).astype(np.int8).T.copy(), "s": 2 * SCALE},
    ),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_weights_as_training_and_quantisation_leave_them(name, model_of, run_ort, op_types, tmp_path):
    body, constants = EXPORTED[name]
    source = ir.to_proto(model_of("y = MatMul(x, w)", "float[N,64] x, float[64,48] w", "float[N,48] y"))
    made = onnx.parser.parse_graph(f"g () => (w) {{ {body} }}").node
    for node in reversed(made):
        source.graph.node.insert(0, node)
    del source.graph.input[1]
    source.graph.initializer.extend(
        array if isinstance(array, onnx.TensorProto) else onnx.numpy_helper.from_array(array, key)
        for key, array in constants.items()
    )
    source.opset_import[0].version = 21
    source.ir_version = 10
    path = tmp_path / "model.onnx"
    onnx.save(source, path)
    model = ingest(path, {"x": (3, 64)})
    (finding,) = run_pipeline(model)
    assert (finding.outcome, finding.reason) == ("applied", "2:4: keeps 50.0 % of the weights")
    assert op_types(model) == ["NMMatMul"]
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    # ONNX Runtime multiplies int8 weights with activations that it quantises itself: no reference here.
    (expected,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    np.testing.assert_allclose(run_ort(model, {"x": x}), expected, rtol=1e-5, atol=1e-5)


def test_a_table_tied_to_a_lookup_stays_whole_for_it(model_of, run_ort, tmp_path):
    """The output head reads the transposed embedding table; both see the same numbers."""
    body = "e = Gather(p, i) w = Transpose <perm=[1, 0]> (p) y = MatMul(e, w)"
    source = ir.to_proto(model_of(body, "int64[N] i, float[48,64] p", "float[N,48] y"))
    del source.graph.input[1]
    source.graph.initializer.append(onnx.numpy_helper.from_array(W.T.copy(), "p"))
    path = tmp_path / "model.onnx"
    onnx.save(source, path)
    model = ingest(path, {"i": (5,)})
    (finding,) = run_pipeline(model)
    assert finding.applied and finding.reason.startswith("2:4: ")
    feeds = {"i": np.array([0, 47, 3, 3, 9])}
    np.testing.assert_allclose(run_ort(model, feeds), run_ort(path, feeds), rtol=1e-6, atol=1e-5)
