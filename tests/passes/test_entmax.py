"""Entmax by sorting and by halving, against ONNX Runtime on the graph as it was, and entmax."""

import numpy as np
import pytest

from sparsec.passes import run_pipeline
from sparsec.passes.entmax import HALVED
from sparsec.passes.sparsemax_forms import NO_SHIFT, ROUNDING

C = (
    "int64[1] k = {6}, int64[1] ax = {1}, int64 ax0 = {1}, float one = {1}, int64 ione = {1}, "
    "float two = {2}, float half = {0.5}, float zero = {0}, float[1,6] r = {1, 2, 3, 4, 5, 6}"
)
SHIFT = "top = ReduceMax <keepdims=1> (x, ax) u = Sub(x, top) z = Div(u, two)"
SORT = "s, i = TopK <axis=1, largest=1, sorted=1> (z, k) c = CumSum(s, ax0) m = Div(c, r)"
SPREAD = "s2 = Pow(s, two) c2 = CumSum(s2, ax0) q = Div(c2, r) m2 = Pow(m, two) v = Sub(q, m2) ss = Mul(r, v)"
ROOT = "e = Sub(one, ss) d = Div(e, r) d0 = Clip(d, zero) rt = Sqrt(d0) t = Sub(m, rt)"
SUM = "n0 = ReduceSum <keepdims=0> (b, ax) n = Unsqueeze(n0, ax)"
SIZE = f"le = LessOrEqual(t, s) b = Cast <to=7> (le) {SUM}"
END = (
    "j = Sub(n, ione) tau = GatherElements <axis=1> (t, j) o = Sub(z, tau) w = Clip(o, zero) y = Pow(w, two)"
)
PARTS = [SHIFT, SORT, SPREAD, ROOT, SIZE, END]


def sort(*changes: tuple[str, str]) -> str:
    body = " ".join(PARTS)
    for old, new in changes:
        assert old in body, old
        body = body.replace(old, new)
    return body


SORTS = {
    "entmax": (sort(), []),
    "products": (
        sort(("Pow(s, two)", "Mul(s, s)"), ("Pow(m, two)", "Mul(m, m)"), ("Pow(w, two)", "Mul(w, w)")),
        [],
    ),
    "relu": (
        sort(("Clip(o, zero)", "Relu(o)"), ("Clip(d, zero)", "Max(zero, d)"), ("Mul(r, v)", "Mul(v, r)")),
        [],
    ),
    "greater": (sort(("LessOrEqual(t, s)", "GreaterOrEqual(s, t)"), ("Div(u, two)", "Mul(half, u)")), []),
    "keepdims": (
        sort((SUM, "n = ReduceSum <keepdims=1> (b, ax)")),
        [],
    ),
    "halved first": (
        sort((SHIFT, "h = Div(x, two) top = ReduceMax <keepdims=1> (h, ax) z = Sub(h, top)")),
        [],
    ),
    "no shift": (sort((SHIFT, "z = Mul(x, half)")), [NO_SHIFT]),
}


def rows() -> np.ndarray:
    """[9, 6]: random, ties, all equal, masks, one winner, small; no NaN or +inf."""
    x = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    x[1] = [1, 1, 0.5, 0.5, 1, 0]
    x[2] = 3
    x[3, 2:5] = -np.inf
    x[4] = [9, 0, 0, 0, 0, 0]
    x[5, 1:] = -np.inf
    x[6] *= 1e-3
    return x


@pytest.mark.parametrize("name", SORTS)
def test_sorting(name, model_of, transform, op_types):
    entmax, torch = pytest.importorskip("entmax"), pytest.importorskip("torch")
    body, said = SORTS[name]
    model, x = model_of(body, "float[9,6] x", "float[9,6] y", C), rows()
    (finding,), before, after = transform(model, {"x": x})
    assert op_types(model) == ["Entmax"]
    assert finding.applied and finding.after == "ai.sparsec.Entmax"
    assert finding.reason == "; ".join(["entmax of alpha 1.5 along axis -1", *sorted([ROUNDING, *said])])
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-6)
    want = entmax.entmax15(torch.tensor(x.astype(np.float64)), dim=1).numpy()
    np.testing.assert_allclose(after, want, rtol=0, atol=1e-6)


NOT_SORTS = {
    "not halved": (sort((SHIFT, "z = Identity(x)")), "the input is not halved first"),
    "another root": (sort(("Sub(one, ss)", "Sub(two, ss)")), "not taken of (1 - spread"),
    "open root": (sort(("d0 = Clip(d, zero) rt = Sqrt(d0)", "rt = Sqrt(d)")), "not taken of max(., 0)"),
    "another mean": (
        sort(("m = Div(c, r)", "m = Div(c, two)")),
        "ranks of the sorted values",
    ),
    "strictly below": (sort(("LessOrEqual(t, s)", "Less(t, s)")), "tau is not gathered at the number"),
    "top 3": (
        sort(
            ("(z, k)", "(z, k3)"),
            ("(c, r)", "(c, r3)"),
            ("(c2, r)", "(c2, r3)"),
            ("(r, v)", "(r3, v)"),
            ("(e, r)", "(e, r3)"),
        ),
        "sorts only the 3 largest of 6 and never recomputes",
    ),
    "another tensor": (sort(("o = Sub(z, tau)", "z9 = Sin(z) o = Sub(z9, tau)")), None),
}


@pytest.mark.parametrize("name", NOT_SORTS)
def test_another_sorting_is_declined(name, model_of, unchanged):
    body, reason = NOT_SORTS[name]
    constants = C + ", int64[1] k3 = {3}, float[1,3] r3 = {1, 2, 3}"
    model = model_of(body, "float[9,6] x", "float[9,6] y", constants)
    was = unchanged(model)
    findings = [f for f in run_pipeline(model) if f.pass_name == "recognise-entmax"]
    assert unchanged(model) == was
    if reason is not None:
        (finding,) = findings
        assert finding.outcome == "declined" and reason in finding.reason


def test_doubles_stay(model_of):
    model = model_of(sort(), "float[9,6] x", "float[9,6] y", C, dtype=np.float64)
    (finding,) = run_pipeline(model)
    assert finding.reason == "the input is DOUBLE; float32 or narrower is required"


NORMALISED = "sum = ReduceSum <keepdims=1> (p, ax) y = Div(p, sum)"


def halving(alpha: float, n: int, count: int = 24, end: str = NORMALISED):
    """As entmax_bisect computes it, kept axes instead of Unsqueeze; (body, constants)."""
    a = alpha - 1
    lines = ["s = Mul(x, a) top = ReduceMax <keepdims=1> (s, ax) low0 = Sub(top, one) high = Sub(top, last)"]
    lines += ["width0 = Sub(high, low0)"]
    for i in range(count):
        lines += [f"width{i + 1} = Mul(width{i}, half) t{i} = Add(low{i}, width{i + 1}) v{i} = Sub(s, t{i})"]
        lines += [f"w{i} = Relu(v{i}) p{i} = Pow(w{i}, power)"]
        if i + 1 < count:
            lines += [f"m{i} = ReduceSum <keepdims=1> (p{i}, ax) g{i} = GreaterOrEqual(m{i}, one)"]
            lines += [f"low{i + 1} = Where(g{i}, t{i}, low{i})"]
    constants = (
        f"int64[1] ax = {{1}}, float one = {{1}}, float half = {{0.5}}, float a = {{{a}}}, "
        f"float power = {{{1 / a}}}, float last = {{{float(n) ** -a}}}"
    )
    lines += [end.replace("p,", f"p{count - 1},").replace("(p)", f"(p{count - 1})")]
    return " ".join(lines), constants


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
@pytest.mark.parametrize("end", [NORMALISED, "y = Identity(p)"])
def test_halving(alpha, end, model_of, transform, op_types):
    entmax, torch = pytest.importorskip("entmax"), pytest.importorskip("torch")
    body, constants = halving(alpha, 6, end=end)
    model, x = model_of(body, "float[9,6] x", "float[9,6] y", constants), rows()
    findings, before, after = transform(model, {"x": x})
    op, which = ("Sparsemax", "sparsemax") if alpha == 2 else ("Entmax", f"entmax of alpha {alpha}")
    assert [o for o in op_types(model) if o != "Identity"] == [op]
    (finding,) = [f for f in findings if f.pass_name == "recognise-entmax"]
    assert finding.reason == f"{which} along axis -1; {HALVED}"
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-6)
    want = entmax.entmax_bisect(torch.tensor(x.astype(np.float64)), alpha, dim=1, n_iter=60).numpy()
    np.testing.assert_allclose(after, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "w = Mul(b, half) t = Add(a, w) v = Sub(x, t) y = Relu(v)",
        "v = Sub(x, a) w = Relu(v) p = Pow(w, two) sum = ReduceSum <keepdims=1> (p) y = Div(p, sum)",
        "p = Exp(x) sum = ReduceSum <keepdims=1> (p) y = Div(p, sum)",
        "v = Sub(x, a) w = Relu(v) y = Mul(w, w)",
        "v = Sub(x, a) w = Relu(v) y = Pow(w, r)",
    ],
)
def test_what_looks_a_little_like_it_is_not_mentioned(body, model_of):
    model = model_of(body, "float[9,6] x, float[9,1] a, float[9,1] b", "float[9,6] y", C)
    assert not [f for f in run_pipeline(model) if f.pass_name == "recognise-entmax"]


NOT_HALVINGS = {
    "few": ((1.5, 6, 8), (), "halves only 8 times, which is not entmax; 24 are enough for float32"),
    "alpha": ((3.0, 6), (), "alpha is 3; kernels take those from 1.01 to 2"),
    "interval": ((1.5, 7), (), "the interval that is halved is not [a max - 1, a max - n^-a], or the power"),
    "power": ((1.5, 6), ("float power = {2.0}", "float power = {3.0}"), "the interval that is halved is not"),
    "test": (
        (1.5, 6),
        ("GreaterOrEqual(m5, one)", "GreaterOrEqual(m5, half)"),
        "which half is taken",
    ),
    "step": (
        (1.5, 6),
        ("Where(g5, t5, low5)", "Where(g5, t5, low4)"),
        "a threshold is not that before",
    ),
    "axis": (
        (1.5, 6),
        ("m5 = ReduceSum <keepdims=1> (p5, ax)", "m5 = ReduceSum <keepdims=1> (p5, ax1)"),
        "the axes of the sums and of the maximum differ",
    ),
    "each": (
        (1.5, 6),
        ("float a = {0.5}", "float[9,1] a = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4}"),
        "alpha differs between slices; one number is required",
    ),
}


@pytest.mark.parametrize("name", NOT_HALVINGS)
def test_another_halving_is_declined(name, model_of, unchanged):
    which, change, reason = NOT_HALVINGS[name]
    body, constants = halving(*which)
    if change:
        assert change[0] in body + constants
        body, constants = body.replace(*change), constants.replace(*change)
    model = model_of(body, "float[9,6] x", "float[9,6] y", constants + ", int64[1] ax1 = {0}")
    was = unchanged(model)
    (finding,) = [f for f in run_pipeline(model) if f.pass_name == "recognise-entmax"]
    assert finding.outcome == "declined" and reason in finding.reason
    assert unchanged(model) == was
