"""Every form of thresholding against ONNX Runtime on the graph as it was, NaN and infinities included."""

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes import run_pipeline
from sparsec.passes.threshold import RecogniseThreshold
from sparsec.passes.threshold_forms import INFINITY, MINUS_INF, NAN_KEPT, NAN_LOST, ZERO_SIGN

T = np.float32(0.3)
CONSTANTS = (
    "float t = {0.3}, float nt = {-0.3}, float zero = {0}, "
    "float one = {1}, float m = {0.5}, float nm = {-0.5}"
)

# name: (operator, body).  t = 0.3, nt = -t, m = 0.5, nm = -m.
FORMS = {
    "shrink soft": ("SoftThreshold", "y = Shrink <lambd=0.3, bias=0.3> (x)"),
    "shrink hard": ("HardThreshold", "y = Shrink <lambd=0.3> (x)"),
    "thresholded relu": ("JumpRelu", "y = ThresholdedRelu <alpha=0.3> (x)"),
    "sub relu": ("ShiftedRelu", "a = Sub(x, t) y = Relu(a)"),
    "add relu": ("ShiftedRelu", "a = Add(x, nt) y = Relu(a)"),
    "add relu, other order": ("ShiftedRelu", "a = Add(nt, x) y = Relu(a)"),
    "sub max": ("ShiftedRelu", "a = Sub(x, t) y = Max(zero, a)"),
    "sub clip": ("ShiftedRelu", "a = Sub(x, t) y = Clip(a, zero)"),
    "where shifted": ("ShiftedRelu", "c = Greater(x, t) a = Sub(x, t) y = Where(c, a, zero)"),
    "relu of soft": ("ShiftedRelu", "s = Shrink <lambd=0.3, bias=0.3> (x) y = Relu(s)"),
    "relu then min": ("ClippedShiftedRelu", "a = Sub(x, t) r = Relu(a) y = Min(m, r)"),
    "relu then clip": ("ClippedShiftedRelu", "a = Sub(x, t) r = Relu(a) y = Clip(r, nm, m)"),
    "min then relu": ("ClippedShiftedRelu", "a = Sub(x, t) r = Min(a, m) y = Relu(r)"),
    "clip": ("ClippedShiftedRelu", "a = Sub(x, t) y = Clip(a, zero, m)"),
    "sign relu": ("SoftThreshold", "s = Sign(x) b = Abs(x) a = Sub(b, t) r = Relu(a) y = Mul(s, r)"),
    "relu sign": (
        "SoftThreshold",
        "s = Sign(x) b = Abs(x) a = Add(nt, b) r = Max(a, zero) y = Mul(r, s)",
    ),
    "two relus": (
        "SoftThreshold",
        "a = Sub(x, t) p = Relu(a) n = Neg(x) b = Sub(n, t) q = Relu(b) y = Sub(p, q)",
    ),
    "two relus, t - x": (
        "SoftThreshold",
        "a = Add(x, nt) p = Relu(a) b = Sub(nt, x) q = Relu(b) y = Sub(p, q)",
    ),
    "two relus, -(x+t)": (
        "SoftThreshold",
        "a = Sub(x, t) p = Relu(a) b = Add(t, x) n = Neg(b) q = Relu(n) k = Neg(q) y = Add(k, p)",
    ),
    "residual of clip": ("SoftThreshold", "c = Clip(x, nt, t) y = Sub(x, c)"),
    "residual of min max": ("SoftThreshold", "c = Max(x, nt) d = Min(c, t) y = Sub(x, d)"),
    "two wheres": (
        "SoftThreshold",
        "a = Sub(x, t) c = Greater(x, t) p = Where(c, a, zero)"
        " b = Add(x, t) d = Less(x, nt) q = Where(d, b, zero) y = Add(q, p)",
    ),
    "nested wheres": (
        "SoftThreshold",
        "a = Sub(x, t) c = Greater(x, t) b = Add(x, t) d = Less(x, nt)"
        " q = Where(d, b, zero) y = Where(c, a, q)",
    ),
    "nested wheres, mirrored": (
        "SoftThreshold",
        "a = Sub(x, t) c = Greater(x, t) p = Where(c, a, zero)"
        " b = Add(x, t) d = Less(x, nt) y = Where(d, b, p)",
    ),
    "where abs soft": (
        "SoftThreshold",
        "b = Abs(x) c = Greater(b, t) s = Sign(x) k = Mul(t, s) a = Sub(x, k) y = Where(c, a, zero)",
    ),
    "clip of soft": (
        "ClippedSoftThreshold",
        "s = Sign(x) b = Abs(x) a = Sub(b, t) r = Relu(a) k = Mul(s, r) y = Clip(k, nm, m)",
    ),
    "min max of soft": (
        "ClippedSoftThreshold",
        "s = Shrink <lambd=0.3, bias=0.3> (x) k = Max(s, nm) y = Min(m, k)",
    ),
    "sign clip": (
        "ClippedSoftThreshold",
        "s = Sign(x) b = Abs(x) a = Sub(b, t) r = Clip(a, zero, m) y = Mul(s, r)",
    ),
    "two clipped relus": (
        "ClippedSoftThreshold",
        "a = Sub(x, t) p = Clip(a, zero, m) n = Neg(x) b = Sub(n, t) q = Clip(b, zero, m) y = Sub(p, q)",
    ),
    "where abs": ("HardThreshold", "b = Abs(x) c = Greater(b, t) y = Where(c, x, zero)"),
    "where abs, less": ("HardThreshold", "b = Abs(x) c = Less(t, b) y = Where(c, x, zero)"),
    "where abs, opposite": ("HardThreshold", "b = Abs(x) c = LessOrEqual(b, t) y = Where(c, zero, x)"),
    "where not": ("HardThreshold", "b = Abs(x) c = LessOrEqual(b, t) n = Not(c) y = Where(n, x, zero)"),
    "where abs >=": ("HardThreshold", "b = Abs(x) c = GreaterOrEqual(b, t) y = Where(c, x, zero)"),
    "where or": ("HardThreshold", "p = Greater(x, t) n = Less(x, nt) c = Or(n, p) y = Where(c, x, zero)"),
    "where and": (
        "HardThreshold",
        "p = LessOrEqual(x, t) n = GreaterOrEqual(x, nt) c = And(n, p) y = Where(c, zero, x)",
    ),
    "where or >=": (
        "HardThreshold",
        "p = GreaterOrEqual(x, t) n = GreaterOrEqual(nt, x) c = Or(n, p) y = Where(c, x, zero)",
    ),
    "mask abs": ("HardThreshold", "b = Abs(x) c = Greater(b, t) k = Cast <to=1> (c) y = Mul(k, x)"),
    "where": ("JumpRelu", "c = Greater(x, t) y = Where(c, x, zero)"),
    "where >=": ("JumpRelu", "c = GreaterOrEqual(x, t) y = Where(c, x, zero)"),
    "where <": ("JumpRelu", "c = Less(x, t) y = Where(c, zero, x)"),
    "where <=": ("JumpRelu", "c = LessOrEqual(x, t) y = Where(c, zero, x)"),
    "where x*0": ("JumpRelu", "c = Greater(x, t) k = Mul(x, zero) y = Where(c, x, k)"),
    "mask": ("JumpRelu", "c = Greater(x, t) k = Cast <to=1> (c) y = Mul(x, k)"),
    "shape zeros": (
        "JumpRelu",
        "c = Greater(x, t) s = Shape(x) z = ConstantOfShape(s) y = Where(c, x, z)",
    ),
}

NOTES = (NAN_KEPT, NAN_LOST, MINUS_INF, INFINITY, ZERO_SIGN)


def probe(dtype=np.float32) -> np.ndarray:
    """[2, 3, 4, 5] with the threshold, its neighbours, both zeros, subnormals, infinities and NaN."""
    t, m = dtype(T), dtype(0.5)
    tiny = np.finfo(dtype).smallest_subnormal
    special = [
        0.0,
        tiny,
        t,
        np.nextafter(t, dtype(0)),
        np.nextafter(t, dtype(1)),
        t + m,
        t + m + t,
        1e4,
        np.inf,
    ]
    special = np.array(special, dtype)
    rest = np.random.default_rng(0).normal(size=120 - 2 * special.size - 1).astype(dtype)
    return np.concatenate([special, -special, np.array([np.nan], dtype), rest]).reshape(2, 3, 4, 5)


def differences(before: np.ndarray, after: np.ndarray, x: np.ndarray) -> set[str]:
    """What changed off the numbers, in the words of the findings; numbers must be equal."""
    nan, lowest, infinite = np.isnan(x), np.isneginf(x), np.isinf(x)
    np.testing.assert_array_equal(after[np.isfinite(x)], before[np.isfinite(x)])
    found = set()
    largest = infinite & (np.abs(before) == np.finfo(before.dtype).max)
    if largest.any() and np.isinf(after[largest]).all():
        found.add(INFINITY)
        lowest = lowest & ~largest
    same = infinite & ~lowest & ~largest
    np.testing.assert_array_equal(after[same], before[same])
    if np.isnan(before[nan]).all() and (after[nan] == 0).all():
        found.add(NAN_LOST)
    elif (before[nan] == 0).all() and np.isnan(after[nan]).all():
        found.add(NAN_KEPT)
    else:
        np.testing.assert_array_equal(after[nan], before[nan])
    if np.isnan(before[lowest]).all() and (after[lowest] == 0).all():
        found.add(MINUS_INF)
    else:
        np.testing.assert_array_equal(after[lowest], before[lowest])
    signs = (np.signbit(before) != np.signbit(after))[~nan & ~np.isnan(before)]
    return found | ({ZERO_SIGN} if signs.any() else set())


@pytest.mark.parametrize("name", FORMS)
def test_form(name, model_of, transform, op_types):
    op, body = FORMS[name]
    model, x = model_of(body, constants=CONSTANTS), probe()
    (finding,), before, after = transform(model, {"x": x})
    assert op_types(model) == [op]
    assert finding.applied and finding.after == f"ai.sparsec.{op}"
    assert finding.reason.startswith("tau = 0.3")
    assert (", m = 0.5;" in finding.reason) == op.startswith("Clipped")
    # The finding names exactly what differs; a zero's sign only "may".
    changed = differences(before, after, x)
    told = {n for n in NOTES if n in finding.reason}
    assert changed <= told
    assert told - changed <= {ZERO_SIGN}


@pytest.mark.parametrize("name", ["sign relu", "two relus", "where abs", "mask", "clip", "where >="])
@pytest.mark.parametrize("dtype, code", [(np.float16, 10), (np.float64, 11)])
def test_other_float_types(name, dtype, code, model_of, transform, op_types):
    op, body = FORMS[name]
    x = probe(dtype)
    model = model_of(body.replace("<to=1>", f"<to={code}>"), constants=CONSTANTS, dtype=dtype)
    findings, before, after = transform(model, {"x": x})
    assert op_types(model) == [op]
    assert after.dtype == dtype
    assert differences(before, after, x) <= {n for n in NOTES if n in findings[0].reason}


@pytest.mark.parametrize(
    "name", [n for n, (_, body) in FORMS.items() if "=0.3" not in body and "Clip(x" not in body]
)
def test_per_channel(name, model_of, transform, op_types):
    """t, -t and m as [3, 1, 1]; thresholds differ by channel."""
    op, body = FORMS[name]
    values = [("t", "0.1, 0.3, 0.7"), ("nt", "-0.1, -0.3, -0.7"), ("m", "0.5, 1, 2"), ("nm", "-0.5, -1, -2")]
    constants = ", ".join(f"float[3,1,1] {k} = {{{v}}}" for k, v in values) + ", float zero = {0}"
    if name in ("relu then clip", "sub clip", "clip", "sign clip", "two clipped relus", "clip of soft"):
        constants = CONSTANTS.replace(
            "float t = {0.3}, float nt = {-0.3}", constants.split(", float[3,1,1] m")[0]
        )
    model, x = model_of(body, constants=constants), probe()
    (finding,), before, after = transform(model, {"x": x})
    assert op_types(model) == [op]
    assert "tau = 3 values in [0.1, 0.7]" in finding.reason
    differences(before, after, x)


def test_constant_nodes_and_subgraphs(model_of, transform):
    """A threshold from a Constant node, inside a branch of If."""
    model = model_of(
        """y = If (c) <
             then_branch = g1 () => (float[2,3,4,5] y1) {
               t = Constant <value_float = 0.3> () a = Sub(x, t) y1 = Relu(a) },
             else_branch = g2 () => (float[2,3,4,5] y2) { y2 = Identity(x) }
           >""",
        inputs="float[2,3,4,5] x, bool c",
    )
    x = probe()
    findings, before, after = transform(model, {"x": x, "c": np.array(True)})
    assert [f.after for f in findings] == ["ai.sparsec.ShiftedRelu"]
    np.testing.assert_array_equal(before, after)


def test_shared_intermediates_stay(model_of, transform, op_types):
    """Sub and Relu that the graph also returns are kept; the whole is recognised, and so is the part."""
    body = "a = Sub(x, t) p = Relu(a) n = Neg(x) b = Sub(n, t) q = Relu(b) y = Sub(p, q)"
    model = model_of(body, constants=CONSTANTS, outputs="float[2,3,4,5] y, float[2,3,4,5] p")
    x = probe()
    findings, before, after = transform(model, {"x": x})
    assert sorted(f.after for f in findings) == ["ai.sparsec.ShiftedRelu", "ai.sparsec.SoftThreshold"]
    assert [o.name for o in model.graph.outputs] == ["y", "p"]
    np.testing.assert_array_equal(before, after)


def test_keeps_names_metadata_and_drops_what_is_unused(model_of):
    model = model_of("a = Sub(x, t) y = Relu(a)", constants=CONSTANTS)
    root = list(model.graph)[-1]
    root.name, root.doc_string = "layer/act", "why"
    root.metadata_props["namespace"] = "net.act"
    run_pipeline(model)
    (node,) = model.graph
    assert (node.name, node.doc_string, node.outputs[0].name) == ("layer/act", "why", "y")
    assert node.metadata_props["namespace"] == "net.act"
    assert node.outputs[0].dtype == ir.DataType.FLOAT and list(node.outputs[0].shape) == [2, 3, 4, 5]
    assert node.inputs[1].name == "t"
    assert "t" in model.graph.initializers


DECLINED = {
    "bias": (
        "y = Shrink <lambd=0.3, bias=0.1> (x)",
        "Shrink has bias 0.1; 0 (hard) or lambd 0.3 (soft) is required",
    ),
    "negative": ("a = Sub(x, nt) y = Relu(a)", "the threshold is negative (-0.3); 0 or more is required"),
    "negative alpha": ("y = ThresholdedRelu <alpha=-0.5> (x)", "the threshold is negative (-0.5)"),
    "negative where": ("c = LessOrEqual(x, nt) y = Where(c, zero, x)", "the threshold is negative (-0.3)"),
    "zero": ("c = Greater(x, zero) y = Where(c, x, zero)", "the threshold is 0, so nothing is thresholded"),
    "infinite": ("y = ThresholdedRelu <alpha=inf> (x)", "the threshold is not finite"),
    "not zero": ("c = Greater(x, t) y = Where(c, x, one)", "inputs under the threshold become 1, not 0"),
    "other number": (
        "c = Greater(x, t) a = Sub(x, m) y = Where(c, a, zero)",
        "compares with another number than it subtracts",
    ),
    "other number, sign": (
        "b = Abs(x) c = Greater(b, t) s = Sign(x) k = Mul(s, m) a = Sub(x, k) y = Where(c, a, zero)",
        "compares with another number than it subtracts",
    ),
    "two sides": (
        "a = Sub(x, t) p = Relu(a) n = Neg(x) b = Sub(n, m) q = Relu(b) y = Sub(p, q)",
        "the positive and the negative side have different thresholds",
    ),
    "two wheres": (
        "a = Sub(x, t) c = Greater(x, t) p = Where(c, a, zero)"
        " b = Add(x, m) d = Less(x, nm) q = Where(d, b, zero) y = Add(p, q)",
        "the positive and the negative side have different thresholds",
    ),
    "nested wheres": (
        "a = Sub(x, t) c = Greater(x, t) b = Add(x, m) d = Less(x, nm)"
        " q = Where(d, b, zero) y = Where(c, a, q)",
        "the positive and the negative side have different thresholds",
    ),
    "two clips": (
        "a = Sub(x, t) p = Clip(a, zero, m) n = Neg(x) b = Sub(n, t) q = Relu(b) y = Sub(p, q)",
        "the positive and the negative side are clipped differently",
    ),
    "clip residual": (
        "c = Clip(x, nm, t) y = Sub(x, c)",
        "subtracts x clipped to [-0.5, 0.3]; [-tau, tau] is required",
    ),
    "non-finite clip": (
        "i = Constant <value_float=inf> () a = Sub(x, t) r = Relu(a) y = Min(r, i)",
        "the clipping bound is not finite",
    ),
    "widening zeros": (
        "c = Greater(x, t) y = Where(c, x, wide)",
        "the constant wide of shape [2, 1, 1, 1, 1] may widen x",
    ),
    "widening tau": ("a = Sub(x, big) y = Relu(a)", "the threshold of shape [2, 1, 1, 1, 1] may widen x"),
    "run time": (
        "s = Sign(x) b = Abs(x) t2 = ReduceMean(b) a = Sub(b, t2) r = Relu(a) y = Mul(s, r)",
        "the threshold t2 is computed at run time; a constant is required",
    ),
    ">= zero": (
        "c = GreaterOrEqual(x, mixed) y = Where(c, x, zero)",
        "compares with >= and a threshold of 0, which keeps what lies on it",
    ),
}
MORE = ", float[2,1,1,1,1] big = {1, 1}, float[2,1,1,1,1] wide = {0, 0}, float[3,1,1] mixed = {0, 1, 1}"


@pytest.mark.parametrize("name", DECLINED)
def test_declined(name, model_of, unchanged):
    body, reason = DECLINED[name]
    shape = "[2,2,3,4,5]" if name.startswith("widening") else "[2,3,4,5]"
    model = model_of(body, outputs=f"float{shape} y", constants=CONSTANTS + MORE)
    was = unchanged(model)
    (finding,) = run_pipeline(model)
    assert finding.outcome == "declined" and finding.pass_name == "recognise-threshold"
    assert reason in finding.reason
    assert finding.before == finding.after
    assert unchanged(model) == was


def test_asymmetric_clip_keeps_the_soft_threshold_inside(model_of, transform, op_types):
    body = "s = Shrink <lambd=0.3, bias=0.3> (x) y = Clip(s, nm, one)"
    model, x = model_of(body, constants=CONSTANTS), probe()
    findings, before, after = transform(model, {"x": x})
    assert [f.outcome for f in findings] == ["applied", "declined"]
    assert "clips a soft threshold to [-0.5, 1]; [-m, m] or [0, m] is required" in findings[1].reason
    assert op_types(model) == ["SoftThreshold", "Clip"]


def test_integers_are_declined(model_of):
    model = model_of("y = Shrink <lambd=1.0> (x)", inputs="int32[4] x", outputs="int32[4] y")
    (finding,) = run_pipeline(model)
    assert finding.reason == "the element type of x is INT32; a float type is required"
    model = model_of("a = Sub(x, t) y = Relu(a)", "int32[4] x", "int32[4] y", "int32 t = {1}")
    (finding,) = run_pipeline(model)
    assert finding.reason == "x is INT32; a float type is required"


def test_attribute_that_the_type_cannot_hold(model_of):
    model = model_of("y = ThresholdedRelu <alpha=0.3> (x)", "float16[4] x", "float16[4] y")
    (finding,) = run_pipeline(model)
    assert finding.reason == "alpha 0.300000012 has no exact value in x's type FLOAT16"


NOT_CANDIDATES = {
    "a layer's bias": "a = Add(x, bias) y = Relu(a)",
    "a negative scalar bias is a threshold, a positive one is not": "a = Add(x, t) y = Relu(a)",
    "a difference": "b = Abs(x) c = ReduceMax(b) a = Sub(x, c) y = Relu(a)",
    "leaky relu": "k = Mul(x, t) c = Greater(x, zero) y = Where(c, x, k)",
    "another tensor": "e = Exp(x) c = Greater(e, t) y = Where(c, x, zero)",
    "sign of another": "e = Exp(x) s = Sign(e) b = Abs(x) a = Sub(b, t) y = Mul(s, a)",
    "keeps the small": "b = Abs(x) c = Less(b, t) y = Where(c, x, zero)",
    "mask of the small": "c = Less(x, t) k = Cast <to=1> (c) y = Mul(x, k)",
    "clip": "y = Clip(x, nm, m)",
    "relu6": "y = Clip(x, zero, m)",
}


@pytest.mark.parametrize("name", NOT_CANDIDATES)
def test_not_candidates(name, model_of, unchanged):
    model = model_of(NOT_CANDIDATES[name], constants=CONSTANTS + ", float[3,1,1] bias = {-1, 0.5, 2}")
    was = unchanged(model)
    assert run_pipeline(model) == []
    assert unchanged(model) == was


def test_overridable_initializer_is_no_constant(model_of):
    """An initializer that is also an input of the graph may be replaced by the caller."""
    model = model_of(
        "a = Sub(x, t) y = Relu(a)", inputs="float[2,3,4,5] x, float t", constants="float t = {0.3}"
    )
    (finding,) = run_pipeline(model)
    assert finding.reason == "the threshold t is computed at run time; a constant is required"


def test_old_opset_is_told(model_of):
    from sparsec.passes import PassError

    model = model_of("a = Sub(x, t) y = Relu(a)", constants=CONSTANTS, opset=13)
    with pytest.raises(PassError, match="need opset 18 or newer, the model imports 13; convert it"):
        RecogniseThreshold()(model)


def test_new_threshold_replaces_the_old_constant(model_of):
    """Add(x, -t) needs a threshold of the other sign; -t, which nothing reads any more, goes."""
    model = model_of("a = Add(x, nt) y = Relu(a)", constants="float nt = {-0.3}")
    run_pipeline(model)
    assert list(model.graph.initializers) == ["n1_Relu_tau"]
    assert model.graph.initializers["n1_Relu_tau"].const_value.numpy() == T


def test_bfloat16(model_of, op_types):
    """No runtime here has all of bfloat16, so the result is compared as a graph."""
    import ml_dtypes

    body = "c = GreaterOrEqual(x, t) y = Where(c, x, zero)"
    model = model_of(body, constants="float t = {0.5}, float zero = {0}", dtype=ml_dtypes.bfloat16)
    (finding,) = run_pipeline(model)
    assert finding.applied and op_types(model) == ["JumpRelu"]
    tau = list(model.graph)[0].inputs[1].const_value
    assert tau.dtype == ir.DataType.BFLOAT16
    assert float(tau.numpy()) == 0.5 - 2**-9
