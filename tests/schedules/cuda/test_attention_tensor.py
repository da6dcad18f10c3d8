"""Attention of 16-bit operands on tensor cores, under the emulator: every thread order."""

import dataclasses

import numpy as np
import pytest

from sparsec.passes.ops.entmax import entmax
from sparsec.passes.ops.sparsemax import sparsemax
from sparsec.schedules import bits
from sparsec.schedules.attention import Attention, Strided
from sparsec.schedules.cuda import Gpu
from sparsec.schedules.cuda.attention_kernel import rule, why_not_narrow
from sparsec.schedules.cuda.attention_tensor_tile import ONLINE, WHOLE, TensorShape, tile_for

BATCH = 2
#: What rounding the shares does to the result, relative to its scale.
ROUNDING = {"float16": 2e-3, "bfloat16": 1e-2}


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


NORMALISERS = {"softmax": softmax, "sparsemax": sparsemax, "entmax": entmax}


def dense(*shape):
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Strided(int(np.prod(shape)), 0, strides, "uint16")


def plain(m, n, d, e, normaliser="softmax", half="float16", **more):
    places = (dense(BATCH, m, d), dense(BATCH, n, d), dense(BATCH, n, e))
    return Attention((BATCH,), m, n, d, e, *places, normaliser, half=half, alpha=1.5, **more)


def to_bits(half, array):
    return getattr(bits, f"to_{half}")(array)


def values(half, stored):
    return getattr(bits, f"from_{half}")(stored).astype("d")


def operands(spec, seed=0):
    """Bits of Q, K and V, and their values in float64."""
    rng = np.random.default_rng(seed)
    sizes = (spec.m, spec.d), (spec.n, spec.d), (spec.n, spec.e)
    stored = [to_bits(spec.half, rng.standard_normal((BATCH, *size)).astype("f")) for size in sizes]
    return stored, [values(spec.half, each) for each in stored]


def run(run_emulated, spec, *arrays, checked=False):
    flat = [a.reshape(-1) for a in arrays]
    return run_emulated(spec.prim_func(), "attention", flat, (spec.y_shape, spec.y_dtype), checked=checked)


def close(y, want, half):
    return np.abs(y - want).max() <= ROUNDING[half] * np.abs(want).max()


@pytest.mark.parametrize(
    "m, n, d, e, half, normaliser",
    [
        (1, 129, 64, 64, "float16", "softmax"),  # half a band, keys dealt out to eight warps
        (7, 31, 6, 34, "bfloat16", "softmax"),  # copies of 4 bytes, steps that are not whole
        (33, 70, 144, 8, "float16", "softmax"),  # queries that do not stay in registers
        (17, 129, 16, 16, "float16", "sparsemax"),
        (1, 1, 2, 4, "bfloat16", "sparsemax"),
        (9, 37, 16, 8, "float16", "entmax"),
        (3, 1300, 8, 8, "float16", "softmax"),  # blocks share the keys
        (9, 2900, 8, 8, "float16", "sparsemax"),  # rows in the device's memory
    ],
)
def test_sizes(run_emulated, m, n, d, e, half, normaliser):
    spec = plain(m, n, d, e, normaliser, half, score=("Mul", "S", d**-0.5))
    stored, (q, k, v) = operands(spec)
    want = NORMALISERS[normaliser](q @ k.swapaxes(-1, -2) * d**-0.5) @ v
    for y in run(run_emulated, spec, *stored, checked=m in (7, 17)):
        assert close(y, want, half)


def test_heads_inside_a_packed_projection_and_a_rounded_result(run_emulated):
    b, s, h, d = 2, 19, 3, 12
    x = to_bits("bfloat16", np.random.default_rng(3).standard_normal((b, s, 3, h, d)).astype("f"))
    q, k, v = values("bfloat16", x).transpose(2, 0, 3, 1, 4)
    places = [Strided(x.size, i * h * d, (s * 3 * h * d, d, 3 * h * d, 1), "uint16") for i in range(3)]
    spec = Attention((b, h), s, s, d, d, *places, y_order=(0, 2, 1, 3), half="bfloat16", y_dtype="uint16")
    want = (softmax(q @ k.swapaxes(-1, -2)) @ v).transpose(0, 2, 1, 3)
    for y in run(run_emulated, spec, x, x, x):
        assert close(values("bfloat16", y), want, "bfloat16")


KEYLESS = ("Where", ("operand", 2), 0.0, "S")


@pytest.mark.parametrize("normaliser", ["softmax", "sparsemax"])
def test_scores_masks_and_rows_without_a_key(run_emulated, normaliser):
    """Keys that are masked at the start, in the middle and at the end; rows of NaN and infinity."""
    m, n, d = 18, 70, 8
    score = ("Where", ("operand", 1), ("Add", ("Div", "S", 2.0), ("operand", 0)), float("-inf"))
    masks = (
        Strided(n, 0, (0, 0, 1)),
        Strided(m * n, 0, (0, n, 1), "bool"),
        Strided(m, 0, (0, 1, 0), "bool"),
    )
    spec = plain(m, n, d, d, normaliser, score=score, guard=KEYLESS, operands=masks)
    (q, k, v), _ = operands(spec)
    rng = np.random.default_rng(4)
    add, keep = rng.standard_normal((1, n)).astype("f"), rng.random((m, n)) < 0.7
    add[:, -3:] = -np.inf
    keep[2], keep[3, :40] = False, False
    q[0, 4, 0], k[1, 30, 1], v[1, 60, 0] = to_bits("float16", np.array([np.nan, np.inf, np.inf], "f"))
    keyless = ~keep.any(1)
    with np.errstate(invalid="ignore"):
        wide = [values("float16", each) for each in (q, k, v)]
        share = NORMALISERS[normaliser](np.where(keep, wide[0] @ wide[1].swapaxes(-1, -2) / 2 + add, -np.inf))
        want = np.where(keyless[:, None], 0, share) @ wide[2]
    assert np.isnan(want).any() and np.isfinite(want).any()
    for y in run(run_emulated, spec, q, k, v, add, keep, keyless):
        np.testing.assert_allclose(y, want, rtol=5e-3, atol=5e-3)


def test_many_queries_are_large_tiles_and_few_are_many_warps(gpu):
    def of(m, n=512, d=64, normaliser="softmax", gpu=gpu, heads=12):
        places = [Strided(heads * c * d, 0, (c * d, d, 1), "uint16") for c in (m, n, n)]
        spec = Attention((heads,), m, n, d, d, *places, normaliser)
        return tile_for(spec, TensorShape.of(spec), gpu, "online" if normaliser == "softmax" else "whole")

    assert of(2048, 2048) == ONLINE[0]
    assert of(512).queries < of(2048).queries
    assert of(1).queries == 8 and of(1).warps == 8
    assert of(2048, d=128).queries == 128 and of(2048, d=512) is None
    assert of(512, normaliser="sparsemax") == WHOLE[0]
    assert of(512, 2048, normaliser="sparsemax").queries == 8
    assert of(512, 5000, normaliser="sparsemax") is None
    assert of(512, 5000, normaliser="sparsemax", gpu=Gpu(("sm_90",))) is not None


def test_what_stays_float32(gpu):
    spec = plain(3, 5, 8, 8)
    assert why_not_narrow(spec, gpu) is None and rule(spec.prim_func(), gpu) is not None
    odd = plain(3, 5, 7, 8)
    assert why_not_narrow(odd, gpu) == "its queries do not lie in pairs of neighbours"
    turned = dataclasses.replace(spec, k=Strided(80, 0, (40, 1, 5), "uint16"))
    assert why_not_narrow(turned, gpu) == "its keys do not lie in pairs of neighbours"
    wide = plain(3, 5, 8, 512)
    assert why_not_narrow(wide, gpu) == "no tile has room for its heads"
    for each in (odd, turned, wide):
        assert rule(each.prim_func(), gpu) is None
