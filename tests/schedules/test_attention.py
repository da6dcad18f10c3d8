"""Attention against float64 NumPy, scores, masks and normalisers, in every layout."""

from dataclasses import replace

import numpy as np
import pytest
import tvm

from sparsec.compiler.objects import build_library
from sparsec.passes.ops.entmax import entmax
from sparsec.passes.ops.sparsemax import sparsemax
from sparsec.schedules import RULE, math, schedule
from sparsec.schedules.attention import Attention, Strided, spec_of
from sparsec.schedules.bits import from_bfloat16, to_bfloat16
from sparsec.schedules.target import X86_LEVELS

LEVELS = [
    pytest.param(X86_LEVELS["v2"], id="v2"),
    pytest.param(X86_LEVELS["v3"], id="v3", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param(X86_LEVELS["v4"], id="v4", marks=pytest.mark.isa("avx512f", "avx512vl")),
]
#: queries, keys, depth, values
SIZES = [
    (1, 1, 1, 1),
    (1, 65, 64, 64),
    (3, 15, 7, 31),
    (17, 16, 16, 16),
    (5, 33, 31, 17),
    (129, 197, 32, 33),
    (7, 1030, 8, 2),
]


def dense(*shape, dtype="float32"):
    return Strided(
        int(np.prod(shape)), 0, tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))), dtype
    )


def softmax(x):
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)


def run(run_kernel, cpu, spec, *flat):
    math.install()
    func = schedule(tvm.IRModule({"main": spec.prim_func()}), cpu)["main"]
    assert func.attrs[RULE] == "attention"
    return run_kernel(func, cpu, [a.reshape(-1) for a in flat], spec.y_shape)


def random(rng, *shapes):
    return [rng.standard_normal(shape).astype("f") for shape in shapes]


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("m,n,d,e", SIZES)
def test_sizes(run_kernel, assert_close, cpu, m, n, d, e):
    q, k, v = random(np.random.default_rng(1), (3, m, d), (3, n, d), (3, n, e))
    spec = Attention((3,), m, n, d, e, dense(3, m, d), dense(3, n, d), dense(3, n, e))
    want = softmax(q.astype("d") @ k.astype("d").transpose(0, 2, 1)) @ v.astype("d")
    assert_close(run(run_kernel, cpu, spec, q, k, v), want)


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("m,n", [(1, 1), (9, 33), (70, 600)])
def test_sparsemax(run_kernel, assert_close, cpu, m, n):
    q, k, v = random(np.random.default_rng(2), (2, m, 16), (2, n, 16), (2, n, 16))
    spec = Attention((2,), m, n, 16, 16, dense(2, m, 16), dense(2, n, 16), dense(2, n, 16), "sparsemax")
    want = sparsemax(q.astype("d") @ k.astype("d").transpose(0, 2, 1)) @ v.astype("d")
    assert_close(run(run_kernel, cpu, spec, q, k, v), want)


@pytest.mark.parametrize("cpu", LEVELS[1:])
@pytest.mark.parametrize("m,n,alpha", [(1, 1, 1.5), (9, 33, 1.25), (70, 600, 1.5)])
def test_entmax(run_kernel, assert_close, cpu, m, n, alpha):
    """With a mask, and rows without a key."""
    q, k, v = random(np.random.default_rng(2), (2, m, 16), (2, n, 16), (2, n, 16))
    keep = np.random.default_rng(3).random((m, n)) < 0.8
    keep[0], keep[-1] = True, m == 1
    spec = Attention(
        (2,), m, n, 16, 16, dense(2, m, 16), dense(2, n, 16), dense(2, n, 16), "entmax",
        ("Where", ("operand", 0), "S", float("-inf")), ("Where", ("IsNaN", "S"), 0.0, "S"),
        (Strided(m * n, 0, (0, n, 1), "bool"),), alpha=alpha,
    )  # fmt: skip
    scores = np.where(keep, q.astype("d") @ k.astype("d").transpose(0, 2, 1), -np.inf)
    want = np.nan_to_num(entmax(scores, alpha)) @ v.astype("d")
    assert_close(run(run_kernel, cpu, spec, q, k, v, keep), want)


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("turned", [False, True], ids=["keys", "turned keys"])
def test_heads_inside_a_packed_projection(run_kernel, assert_close, cpu, turned):
    b, s, h, d = 2, 19, 3, 10
    (x,) = random(np.random.default_rng(3), (b, s, 3, h, d))
    q, k, v = x.astype("d").transpose(2, 0, 3, 1, 4)
    width = 3 * h * d
    places = [Strided(x.size, i * h * d, (s * width, d, width, 1)) for i in range(3)]
    flat = [x, x, x]
    if turned:
        flat[1] = np.ascontiguousarray(x[:, :, 1].transpose(0, 2, 3, 1))
        places[1] = Strided(flat[1].size, 0, (h * d * s, d * s, 1, s))
    spec = Attention((b, h), s, s, d, d, *places, y_order=(0, 2, 1, 3))
    want = (softmax(q @ k.swapaxes(-1, -2)) @ v).transpose(0, 2, 1, 3)
    assert_close(run(run_kernel, cpu, spec, *flat), want)


@pytest.mark.parametrize("cpu", LEVELS)
def test_scores_masks_and_rows_without_a_key(run_kernel, cpu):
    m, n, d = 6, 21, 8
    rng = np.random.default_rng(4)
    q, k, v, add = random(rng, (2, m, d), (2, n, d), (2, n, d), (1, n))
    add[:, -3:] = -np.inf
    keep = rng.random((m, n)) < 0.7
    keep[2] = False
    q[0, 4, 0], k[1, 3, 1] = np.nan, np.inf
    operands = (Strided(n, 0, (0, 0, 1)), Strided(m * n, 0, (0, n, 1), "bool"))
    score = ("Where", ("operand", 1), ("Add", ("Div", "S", 2.0), ("operand", 0)), float("-inf"))
    keyless = ~keep.any(1)
    guards = {
        "S": lambda p: p,
        ("Where", ("IsNaN", "S"), 0.0, "S"): np.nan_to_num,
        ("Where", ("operand", 2), 0.0, "S"): lambda p: np.where(keyless[:, None], 0, p),
    }
    operands += (Strided(m, 0, (0, 1, 0), "bool"),)
    for guard, guarded in guards.items():
        spec = Attention(
            (2,),
            m,
            n,
            d,
            d,
            dense(2, m, d),
            dense(2, n, d),
            dense(2, n, d),
            "softmax",
            score,
            guard,
            operands,
        )
        with np.errstate(invalid="ignore"):
            share = softmax(np.where(keep, (q.astype("d") @ k.astype("d").swapaxes(1, 2)) / 2 + add, -np.inf))
            want = guarded(share) @ v
        got = run(run_kernel, cpu, spec, q, k, v, add, keep, keyless)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


BF16_LEVELS = [
    *LEVELS[1:],
    pytest.param(X86_LEVELS["v4bf16"], id="v4bf16", marks=pytest.mark.isa("avx512_bf16")),
]


def narrow(*places):
    return [replace(place, dtype="uint16") for place in places]


def assert_near(cpu, got, want):
    """Exact products and sums; where they are of pairs, P is rounded as well."""
    allowed = 2.0**-8 if cpu.name == "v4bf16" else 1e-5
    assert got.shape == want.shape and np.abs(got - want).max() <= allowed * np.abs(want).max()


@pytest.mark.parametrize("cpu", BF16_LEVELS)
@pytest.mark.parametrize("m,n,d,e", [(1, 1, 1, 1), (3, 15, 7, 31), (129, 197, 32, 33)])
def test_bfloat16(run_kernel, cpu, m, n, d, e):
    parts = random(np.random.default_rng(1), (3, m, d), (3, n, d), (3, n, e))
    bits = [to_bfloat16(part) for part in parts]
    q, k, v = (from_bfloat16(b).astype("d") for b in bits)
    spec = Attention((3,), m, n, d, e, *narrow(*(dense(*a.shape) for a in bits)))
    got = run(run_kernel, cpu, spec, *bits)
    assert_near(cpu, got, softmax(q @ k.transpose(0, 2, 1)) @ v)


@pytest.mark.parametrize("cpu", BF16_LEVELS)
def test_bfloat16_read_in_place(run_kernel, cpu):
    """Turned keys, queries whose values lie apart, a guard, sparsemax; an odd number of values and keys."""
    b, s, h, d = 2, 19, 3, 11
    (x,) = random(np.random.default_rng(3), (b, s, 3, h, d))
    x = to_bfloat16(x)
    q, k, v = from_bfloat16(x).astype("d").transpose(2, 0, 3, 1, 4)
    flat = [np.ascontiguousarray(x[:, :, i].transpose(0, 2, 3, 1)) for i in range(2)] + [x]
    size, width = flat[0].size, 3 * h * d
    places = [Strided(size, 0, (h * d * s, d * s, 1, s))] * 2
    places.append(Strided(x.size, 2 * h * d, (s * width, d, width, 1)))
    guard = ("Where", ("operand", 0), 0.0, "S")
    keyless = np.arange(s) % 5 == 2
    operands = (Strided(s, 0, (0, 0, 1, 0), "bool"),)
    spec = Attention((b, h), s, s, d, d, *narrow(*places), "sparsemax", "S", guard, operands)
    want = np.where(keyless[:, None], 0, sparsemax(q @ k.swapaxes(-1, -2))) @ v
    assert_near(cpu, run(run_kernel, cpu, spec, *flat, keyless), want)


@pytest.mark.isa("avx512_bf16")
def test_bfloat16_goes_through_pairs_alone():
    place = dense(2, 16, 16)
    spec = Attention((2,), 16, 16, 16, 16, *narrow(place, place, place))
    asm = build_library(tvm.IRModule({"main": spec.prim_func()}), X86_LEVELS["v4bf16"]).library
    asm = asm.inspect_source("asm")
    assert "vdpbf16ps" in asm and "vcvtneps2bf16" in asm


@pytest.mark.parametrize("normaliser", ["softmax", "sparsemax", "entmax"])
def test_the_definition_is_right_unscheduled(run_kernel, assert_close, normaliser):
    q, k, v = random(np.random.default_rng(5), (2, 5, 4), (2, 7, 4), (2, 7, 3))
    spec = Attention(
        (2,), 5, 7, 4, 3, dense(2, 5, 4), dense(2, 7, 4), dense(2, 7, 3), normaliser, ("Mul", "S", 0.5),
        ("Where", ("IsNaN", "S"), 0.0, "S"), y_order=(1, 0, 2), alpha=1.5,
    )  # fmt: skip
    assert spec_of(spec.prim_func()) == spec
    share = {"softmax": softmax, "sparsemax": sparsemax, "entmax": entmax}[normaliser]
    want = share(q.astype("d") @ k.astype("d").transpose(0, 2, 1) / 2) @ v
    math.install()
    flat = [a.reshape(-1) for a in (q, k, v)]
    assert_close(run_kernel(spec.prim_func(), X86_LEVELS["v2"], flat, spec.y_shape), want.transpose(1, 0, 2))


def test_what_is_no_attention():
    place = dense(2, 3, 4)
    with pytest.raises(ValueError, match="required one of .* found 'relu'"):
        Attention((2,), 3, 3, 4, 4, place, place, place, "relu")
    with pytest.raises(ValueError, match="required one dtype of q, k and v, found float32, uint16, float32"):
        Attention((2,), 3, 3, 4, 4, place, *narrow(place), place)
    with pytest.raises(ValueError, match=r"required 3 strides of k, found \(3, 1\)"):
        Attention((2,), 3, 3, 4, 4, place, dense(3, 3), place)


BYTES = [
    *LEVELS,
    pytest.param(X86_LEVELS["v4vnni"], id="v4vnni", marks=pytest.mark.isa("avx512_vnni")),
    # As on architectures whose products of bytes are slower than those of floats.
    pytest.param(replace(X86_LEVELS["v2"], name="plain", triple=""), id="plain"),
]


@pytest.mark.parametrize("cpu", BYTES)
@pytest.mark.parametrize("m,n,d,e", [(1, 1, 1, 1), (7, 131, 65, 33)])
def test_bytes(cpu, m, n, d, e):
    """Exact integers; scores so far apart that P is 1 over a small number, whose rounding nobody doubts."""
    rng = np.random.default_rng(5)
    q, k, v = (rng.integers(0, 256, shape, np.uint8) for shape in ((2, m, d), (2, n, d), (2, n, e)))
    q[0], k[0, 0], v[1, -1] = 255, 0, 255
    places = [dense(*x.shape, dtype="uint8") for x in (q, k, v)]
    steps = ("Within", ("Mul", "S", ("number", 5)), ("number", 6), ("number", 7))
    score = ("Add", ("Mul", ("Nearest", steps), ("number", 8)), ("operand", 0))
    guard = ("Nearest", ("Within", ("Quotient", "S", ("number", 9), ("number", 10)), 0.0, ("number", 11)))
    operand, share = Strided(n, 0, (0, 0, 1)), np.float32(1 / 200)
    spec = Attention((2,), m, n, d, e, *places, "softmax", score, guard, (operand,), numbers=12)
    mask = np.where(rng.random(n) < 0.2, -1e4, 0).astype("f")
    assert spec_of(spec.prim_func()) == spec
    kernel = build_library(tvm.IRModule({"main": spec.prim_func().with_attr("global_symbol", "main")}), cpu)
    assert kernel.rules == {"main": "attention"}
    for zq, zk, zp, zv in ((0, 0, 0, 0), (255, 255, 255, 255), (3, 128, 0, 140)):
        factor = np.float32(0.0123)
        numbers = [zq, zk, zp, zv, factor, 2e-4, -128, 127, 64, share, 1 / share, 255 - zp]
        numbers = np.array(numbers, "f")
        s = (q.astype(int) - zq) @ (k.astype(int) - zk).swapaxes(1, 2)
        s = np.rint(np.clip(s.astype("f") * numbers[5], -128, 127)) * 64 + mask
        p = np.clip(np.rint(softmax(s.astype("d")) / share), 0, 255 - zp).astype(int)
        want = (p @ (v.astype(int) - zv)).astype("f") * factor
        got = tvm.runtime.tensor(np.full(want.shape, np.nan, "f"))
        kernel.library["main"](*(tvm.runtime.tensor(x.reshape(-1)) for x in (q, k, v, mask, numbers)), got)
        np.testing.assert_array_equal(got.numpy(), want)
