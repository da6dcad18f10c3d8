"""Sparsemax in its many spellings against ONNX Runtime on the graph as it was, and entmax."""

import numpy as np
import pytest

from sparsec.passes import run_pipeline
from sparsec.passes.sparsemax import NO_SHIFT
from sparsec.passes.sparsemax_forms import ROUNDING, SLICE_NAN

C = (
    "int64[1] k = {6}, int64[1] ax = {1}, int64 ax0 = {1}, float one = {1}, int64 ione = {1}, "
    "float mone = {-1}, "
    "float zero = {0}, float[1,6] r = {1, 2, 3, 4, 5, 6}"
)
SHIFT = "top = ReduceMax <keepdims=1> (x, ax) z = Sub(x, top)"
SORT = "s, i = TopK <axis=1, largest=1, sorted=1> (z, k) c = CumSum(s, ax0)"
EXCESS = "e = Sub(c, one) rs = Mul(r, s) sup = Greater(rs, e)"
SIZE = "b = Cast <to=7> (sup) n0 = ReduceSum <keepdims=0> (b, ax) n = Unsqueeze(n0, ax)"
GATHER = "j = Sub(n, ione) g = GatherElements <axis=1> (e, j) nf = Cast <to=1> (n) tau = Div(g, nf)"
END = "d = Sub(z, tau) y = Relu(d)"

BOUND = "rs = Mul(s, r) bound = Add(one, rs) sup = Greater(bound, c) f = Cast <to=1> (sup)"
MASKED = "h = Mul(f, r) n = ReduceMax <keepdims=1> (h, ax) q = Mul(s, f) w = ReduceSum <keepdims=1> (q, ax)"
LATER = "u = Sub(w, one) tau = Div(u, n)"

EXACT = ["the same in every bit unless a slice has NaN or +inf"]

# name: (body, what the finding must say besides the axis)
FORMS = {
    "entmax": ([SHIFT, SORT, EXCESS, SIZE, GATHER, END], EXACT),
    "clip": (
        [SHIFT, SORT, EXCESS, SIZE, GATHER, "d = Sub(z, tau) y = Clip(d, zero)"],
        EXACT,
    ),
    "max": (
        [SHIFT, SORT, EXCESS, SIZE, GATHER, "d = Sub(z, tau) y = Max(zero, d)"],
        EXACT,
    ),
    "less": (
        [SHIFT, SORT, EXCESS.replace("Greater(rs, e)", "Less(e, rs)"), SIZE, GATHER, END],
        EXACT,
    ),
    "keepdims": (
        [SHIFT, SORT, EXCESS, "b = Cast <to=7> (sup) n = ReduceSum <keepdims=1> (b, ax)", GATHER, END],
        EXACT,
    ),
    "plus minus one": (
        [SHIFT, SORT, EXCESS.replace("Sub(c, one)", "Add(mone, c)"), SIZE, GATHER, END],
        EXACT,
    ),
    "no shift": (["z = Identity(x)", SORT, EXCESS, SIZE, GATHER, END], [NO_SHIFT]),
    "shift by the maximum of all": (
        ["top = ReduceMax <keepdims=1> (x) z = Sub(x, top)", SORT, EXCESS, SIZE, GATHER, END],
        [NO_SHIFT],
    ),
    "one taken off late": (
        [
            SHIFT,
            SORT,
            EXCESS,
            SIZE,
            GATHER.replace("(e, j)", "(c, j)")
            .replace("Div(g", "Div(u")
            .replace("nf =", "u = Sub(g, one) nf ="),
            END,
        ],
        [ROUNDING],
    ),
    "bound and masks": ([SHIFT, SORT, BOUND, MASKED, LATER, END], [ROUNDING, SLICE_NAN]),
    "bound and masks, no shift": (
        ["z = Identity(x)", SORT, BOUND, MASKED, LATER, END],
        [ROUNDING, SLICE_NAN, NO_SHIFT],
    ),
}


def rows() -> np.ndarray:
    """[10, 6]: random, ties, all equal, masks, one winner, large; no NaN or +inf."""
    x = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    x[1] = [1, 1, 0.5, 0.5, 1, 0]
    x[2] = 3
    x[3, 2:5] = -np.inf
    x[4] = [9, 0, 0, 0, 0, 0]
    x[5] = 0
    x[6, 1:] = -np.inf
    x[7] *= 1e-3
    x[8] = [-0.0, 0.0, -1, 1, 0.5, -0.5]
    return x


def text(parts: list[str]) -> str:
    return " ".join(parts)


@pytest.mark.parametrize("name", FORMS)
def test_form(name, model_of, transform, op_types):
    entmax, torch = pytest.importorskip("entmax"), pytest.importorskip("torch")
    parts, said = FORMS[name]
    model, x = model_of(text(parts), "float[10,6] x", "float[10,6] y", C), rows()
    (finding,), before, after = transform(model, {"x": x})
    assert [o for o in op_types(model) if o not in ("Identity", "ReduceMax", "Sub")] == ["Sparsemax"]
    assert finding.applied and finding.after == "ai.sparsec.Sparsemax"
    assert finding.reason == "; ".join(["sparsemax along axis -1", *sorted(said)])
    if said == EXACT:
        np.testing.assert_array_equal(before, after)
    if SLICE_NAN in said:
        masked = np.isneginf(x).any(-1)
        assert np.isnan(before[masked]).all()
        before[masked] = after[masked]
    np.testing.assert_allclose(before, after, rtol=0, atol=2e-6)
    expected = entmax.sparsemax(torch.tensor(x.astype(np.float64)), dim=1).numpy()
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", range(6))
def test_slices_without_an_answer_are_nan_as_a_whole(place, model_of, transform):
    """ONNX leaves open where TopK puts a NaN, so the graph before may say anything there."""
    x = np.zeros((4, 6), np.float32)
    x[0, place], x[1, place], x[2] = np.nan, np.inf, -np.inf
    model = model_of(text(FORMS["entmax"][0]), "float[4,6] x", "float[4,6] y", C)
    _, before, after = transform(model, {"x": x})
    np.testing.assert_array_equal(before[2:], after[2:])
    assert np.isnan(after[:3]).all() and np.allclose(after[3], 1 / 6)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis(axis, model_of, transform, op_types):
    n = (4, 5, 6)[axis]
    shape = [1, 1, 1]
    shape[axis] = n
    constants = (
        f"int64[1] k = {{{n}}}, int64[1] ax = {{{axis}}}, int64 ax0 = {{{axis}}}, "
        f"float one = {{1}}, int64 ione = {{1}},"
        f"float[{','.join(map(str, shape))}] r = {{{', '.join(str(i + 1) for i in range(n))}}}"
    )
    body = text(FORMS["entmax"][0]).replace("axis=1", f"axis={axis}")
    model = model_of(body, "float[4,5,6] x", "float[4,5,6] y", constants)
    x = np.random.default_rng(n).normal(size=(4, 5, 6)).astype(np.float32)
    (finding,), before, after = transform(model, {"x": x})
    assert op_types(model) == ["Sparsemax"]
    assert f"along axis {axis % 3 - 3};" in finding.reason
    np.testing.assert_array_equal(before, after)


def test_ranks_and_k_from_the_shape(model_of, transform, op_types):
    """As the TorchScript exporter leaves them when nothing was folded."""
    body = text(
        [
            SHIFT,
            "sh = Shape(z) zero1 = Constant <value_ints = [1]> () k2 = Gather(sh, zero1)",
            "s, i = TopK <axis=1> (z, k2) c = CumSum(s, ax0)",
            "k0 = Squeeze(k2) limit = Add(k0, ione) rr = Range(ione, limit, ione) r2 = Cast <to=1> (rr)",
            EXCESS.replace("Mul(r,", "Mul(r2,"),
            SIZE,
            GATHER,
            END,
        ]
    )
    model, x = model_of(body, "float[10,6] x", "float[10,6] y", C), rows()
    (finding,), before, after = transform(model, {"x": x})
    assert op_types(model) == ["Sparsemax"]
    np.testing.assert_array_equal(before, after)


def test_masked_attention_scores(model_of, transform, op_types):
    """A mask of -inf is added before; it stays, and masked positions get exactly 0."""
    masked = "m = Where(mask, x0, ninf) x = Identity(m)"
    inputs = "float[10,6] x0, bool[10,6] mask"
    model = model_of(
        text([masked, *FORMS["entmax"][0]]), inputs, "float[10,6] y", C + ", float ninf = {-inf}"
    )
    rng = np.random.default_rng(0)
    mask = rng.random((10, 6)) < 0.5
    mask[:, 0] = True
    mask[9] = False  # nothing left: NaN, as softmax would give
    x = rng.normal(size=(10, 6)).astype(np.float32)
    _, before, after = transform(model, {"x0": x, "mask": mask})
    assert op_types(model) == ["Where", "Identity", "Sparsemax"]
    np.testing.assert_array_equal(before, after)
    assert (after[:9][~mask[:9]] == 0).all() and np.isnan(after[9]).all()


def change(part: str, old: str, new: str) -> list[str]:
    parts = FORMS["entmax"][0]
    assert any(old in p for p in parts if p == part), old
    return [p.replace(old, new) if p == part else p for p in parts]


TOP3 = [
    SHIFT,
    SORT.replace("(z, k)", "(z, k3)"),
    EXCESS.replace("Mul(r,", "Mul(r3,"),
    SIZE,
    GATHER,
    END,
]
DECLINED = {
    "top 3": (TOP3, "sorts only the 3 largest of 6 and never recomputes, which is not sparsemax for a slice"),
    "ranks": (
        change(EXCESS, "Mul(r,", "Mul(half,"),
        "sorted values are not 1, 2, ... 6 along axis -1",
    ),
    "ascending": (change(SORT, "largest=1", "largest=0"), "TopK does not sort in descending order"),
    "other axis": (
        [p.replace("CumSum(s, ax0)", "CumSum(s, axis0)") for p in FORMS["entmax"][0]],
        "the axes differ: TopK sorts along -1, CumSum along -2 (counted from the end)",
    ),
    "run-time axis": (
        [p.replace("CumSum(s, ax0)", "CumSum(s, some)") for p in FORMS["entmax"][0]],
        "the axis of CumSum is not a constant",
    ),
    "run-time k": (change(SORT, "(z, k)", "(z, kk)"), "the k of TopK is not a constant"),
    "exclusive": (change(SORT, "CumSum(s", "CumSum <exclusive=1> (s"), "CumSum is exclusive or reversed"),
    ">=": (change(EXCESS, "Greater(", "GreaterOrEqual("), "the support is found with >=; > is required"),
    "gathered elsewhere": (
        change(GATHER, "Sub(n, ione)", "Sub(n, itwo)"),
        "tau is not gathered at the size of the support less 1",
    ),
    "another divisor": (
        change(GATHER, "Div(g, nf)", "Div(g, two)"),
        "tau is not divided by the size of the support",
    ),
    "a second count": (
        change(GATHER, "nf = Cast <to=1> (n)", "n2 = ReduceSum <keepdims=1> (b, ax) nf = Cast <to=1> (n2)"),
        "tau is divided by another count than the one it gathers with",
    ),
    "another tensor": (
        [*FORMS["entmax"][0][:-1], "v = Sin(z) d = Sub(v, tau) y = Relu(d)"],
        None,
    ),
    "shifted tensor": (
        [*FORMS["entmax"][0][:-1], "d = Sub(x, tau) y = Relu(d)"],
        "tau is computed from another tensor than it is subtracted from",
    ),
    "clipped": (
        [*FORMS["entmax"][0][:-1], "d = Sub(z, tau) y = Clip(d, zero, half0)"],
        "the result is not max(z - tau, 0)",
    ),
    "another sum": (
        change(GATHER, "Div(g, nf)", "Div(gg, nf)")[:-1] + ["d = Sub(z, tau) y = Relu(d)"],
        "sorts and sums, but tau is not (sum of the support - 1) / size of the support",
    ),
    "reduced along another axis": (
        [
            p.replace("(b, ax) n = Unsqueeze(n0, ax)", "(b, axis01) n = Unsqueeze(n0, axis01)")
            for p in FORMS["entmax"][0]
        ],
        "the axes differ: TopK sorts along -1, Unsqueeze along -2",
    ),
}
EXTRA = (
    ", int64[1] k3 = {3}, float[1,3] r3 = {1, 2, 3}, float[1,6] half = {1, 2, 3, 4, 5, 5}, int64 axis0 = {0},"
    "int64[1] axis01 = {0}, int64 itwo = {2}, float two = {2}, float half0 = {0.5}"
)


@pytest.mark.parametrize("name", DECLINED)
def test_declined(name, model_of, unchanged):
    parts, reason = DECLINED[name]
    body = text(parts)
    if "Div(gg" in body:
        body = body.replace("tau = Div", "gg = Mul(g, two) tau = Div")
    model = model_of(body, "float[6,6] x, int64[1] kk, int64 some", "float[6,6] y", C + EXTRA)
    was = unchanged(model)
    findings = [f for f in run_pipeline(model) if f.pass_name == "recognise-sparsemax"]
    assert unchanged(model) == was
    if reason is None:
        assert findings == [] or findings[0].outcome == "declined"
        return
    (finding,) = findings
    assert finding.outcome == "declined"
    assert reason in finding.reason


def test_partial_sort_is_really_another_function(model_of, run_ort):
    """The declined top-3 graph differs from sparsemax where the support is larger."""
    x = np.zeros((1, 6), np.float32)
    partial = run_ort(model_of(text(TOP3), "float[1,6] x", "float[1,6] y", C + EXTRA), {"x": x})
    assert partial.sum() > 1.9
    whole = run_ort(model_of(text(FORMS["entmax"][0]), "float[1,6] x", "float[1,6] y", C), {"x": x})
    np.testing.assert_allclose(whole.sum(), 1, atol=1e-6)


def test_unknown_shapes(model_of, unchanged):
    model = model_of(text(FORMS["entmax"][0]), "float[batch,length] x", "float[batch,length] y", C)
    (finding,) = [f for f in run_pipeline(model) if f.pass_name == "recognise-sparsemax"]
    assert finding.reason == "the length of axis -1 is not known; freeze the shape"
    model = model_of(text(FORMS["entmax"][0]), "float[10,6] x", "float[10,6] y", C)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    (finding,) = run_pipeline(model)
    assert finding.reason == "the rank of the input is not known; run shape inference"


def test_integers(model_of):
    body = text(FORMS["entmax"][0]).replace("<to=1>", "<to=7>")
    constants = C.replace("float", "int64")
    model = model_of(body, "int64[10,6] x", "int64[10,6] y", constants)
    (finding,) = [f for f in run_pipeline(model) if f.pass_name == "recognise-sparsemax"]
    assert finding.reason == "the input is INT64; a float type is required"
