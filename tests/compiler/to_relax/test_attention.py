"""Attention as exporters write it: one kernel, no transposes, the numbers of ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import parser

RNG = np.random.default_rng(29)

# Every text is a graph behind Q, K and V of [2, 7, 3, 8] each, or X of [2, 7, 72]; results are in Y.
HEADS = """
    q = Transpose<perm = [0, 2, 1, 3]> (Q)
    k = Transpose<perm = [0, 2, 3, 1]> (K)
    v = Transpose<perm = [0, 2, 1, 3]> (V)
"""
PACKED = """
    five = Constant<value_ints = [2, 7, 3, 3, 8]> ()
    x5 = Reshape(X, five)
    x3 = Transpose<perm = [2, 0, 3, 1, 4]> (x5)
    zero = Constant<value_int = 0> ()
    one = Constant<value_ints = [1]> ()
    two = Constant<value_ints = [2]> ()
    three = Constant<value_ints = [3]> ()
    first = Constant<value_ints = [0]> ()
    q = Gather<axis = 0> (x3, zero)
    k4 = Slice(x3, one, two, first)
    ks = Squeeze(k4, first)
    kt = Transpose<perm = [0, 1, 3, 2]> (ks)
    v4 = Slice(x3, two, three, first)
    v = Squeeze(v4, first)
    root = Constant<value_float = 0.5946> ()
    qs = Mul(q, root)
    k = Mul(kt, root)
"""
SPLIT = """
    parts = Constant<value_ints = [24, 24, 24]> ()
    xq, xk, xv = Split<axis = 2> (X, parts)
    four = Constant<value_ints = [2, 7, 3, 8]> ()
    Q = Reshape(xq, four)
    K = Reshape(xk, four)
    V = Reshape(xv, four)
"""
LAST = """
    yt = Transpose<perm = [0, 2, 1, 3]> (y)
    flat = Constant<value_ints = [2, 7, 24]> ()
    Y = Reshape(yt, flat)
"""
QKV = ("Q", "K", "V")
FORMS = {
    "bert": (
        QKV,
        HEADS
        + """
        s = MatMul(q, k)
        scale = Constant<value_float = 2.8284> ()
        d = Div(s, scale)
        a = Add(d, M)
        p = Softmax(a)
        y = MatMul(p, v)"""
        + LAST,
    ),
    "packed": (("X",), PACKED + " s = MatMul(qs, k) p = Softmax<axis = -1> (s) y = MatMul(p, v)" + LAST),
    "gpt2": (
        ("X",),
        SPLIT
        + HEADS
        + """
        s = MatMul(q, k)
        low = Constant<value_float = -3.0e38> ()
        c = Where(C, s, low)
        p = Softmax<axis = 3> (c)
        y = MatMul(p, v)"""
        + LAST,
    ),
    "guarded": (
        QKV,
        HEADS
        + """
        s = MatMul(q, k)
        a = Add(M, s)
        p = Softmax(a)
        nan = IsNaN(p)
        nought = Constant<value_float = 0.0> ()
        g = Where(nan, nought, p)
        y = MatMul(g, v)"""
        + LAST,
    ),
    "capped": (
        QKV,
        HEADS
        + """
        s = MatMul(q, k)
        cap = Constant<value_float = 5.0> ()
        d = Div(s, cap)
        t = Tanh(d)
        u = Mul(cap, t)
        p = Softmax(u)
        y = MatMul(p, v)"""
        + LAST,
    ),
    "one key for all heads": (
        QKV,
        HEADS
        + """
        from = Constant<value_ints = [0]> ()
        to = Constant<value_ints = [1]> ()
        axis = Constant<value_ints = [1]> ()
        k1 = Slice(k, from, to, axis)
        v1 = Slice(v, from, to, axis)
        wide = Constant<value_ints = [2, 3, 7, 8]> ()
        vw = Expand(v1, wide)
        s = MatMul(q, k1)
        p = Softmax(s)
        y = MatMul(p, vw)"""
        + LAST,
    ),
    "cache": (
        QKV,
        HEADS
        + """
        kr = Transpose<perm = [0, 2, 1, 3]> (K)
        K2 = Concat<axis = 2> (P, kr)
        kk = Transpose<perm = [0, 1, 3, 2]> (K2)
        V2 = Concat<axis = 2> (P, v)
        s = MatMul(q, kk)
        p = Softmax(s)
        y = MatMul(p, V2)"""
        + LAST,
    ),
}
SHAPES = {
    "X": ("float", (2, 7, 72)),
    **dict.fromkeys(QKV, ("float", (2, 7, 3, 8))),
    "M": ("float", (2, 1, 1, 7)),
    "C": ("bool", (1, 1, 7, 7)),
    "P": ("float", (2, 3, 5, 8)),
}


def build(names, body, outputs="float[2, 7, 24] Y"):
    names = [*names, *(n for n in "MCP" if f"({n}," in body or f" {n})" in body)]
    typed = ", ".join(f"{SHAPES[n][0]}[{', '.join(map(str, SHAPES[n][1]))}] {n}" for n in names)
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20, "ai.sparsec" : 1]> g ({typed}) => ({outputs}) {{{body}}}'
    )
    feeds = {}
    for name in names:
        kind, shape = SHAPES[name]
        feeds[name] = RNG.random(shape) < 0.6 if kind == "bool" else RNG.standard_normal(shape).astype("f")
    if "C" in feeds:
        feeds["C"][..., 0] = True
    if "M" in feeds:
        feeds["M"][:, :, :, 4:] = -np.inf
    return onnx.shape_inference.infer_shapes(model), feeds


def kernels(result):
    return [step.symbol for step in result.plan.steps]


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, same_as_ort):
    model, feeds = build(*FORMS[form])
    result = same_as_ort(model, feeds)
    names = kernels(result)
    assert names[-1].startswith("attention")
    assert len(names) == (3 if form == "cache" else 1), names


def test_a_row_without_a_key(same_as_ort):
    for form in ("bert", "guarded"):
        model, feeds = build(*FORMS[form])
        feeds["M"][1] = -np.inf
        same_as_ort(model, feeds)


def test_scores_that_others_read_are_kept(same_as_ort):
    names, body = FORMS["bert"]
    model, feeds = build(names, body, "float[2, 7, 24] Y, float[2, 3, 7, 7] p")
    assert not any("attention" in name for name in kernels(same_as_ort(model, feeds)))


@pytest.mark.parametrize("axis", [1, 2])
def test_another_axis_is_no_attention(axis, same_as_ort):
    names, body = FORMS["capped"]
    model, feeds = build(names, body.replace("Softmax(u)", f"Softmax<axis = {axis}> (u)"))
    assert not any("attention" in name for name in kernels(same_as_ort(model, feeds)))


def test_the_operators_of_newer_opsets(single_op, same_as_ort):
    x = {name: RNG.standard_normal((2, 3, 7, 8)).astype("f") for name in "QKV"}
    model = single_op("Attention", x, opset=23, is_causal=1)
    assert any("attention" in name for name in kernels(same_as_ort(model, x)))
