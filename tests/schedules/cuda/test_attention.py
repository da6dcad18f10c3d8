"""Attention under the emulator: every thread order, softmax online and rows of scores in shared memory."""

import dataclasses

import numpy as np
import pytest
import torch

from sparsec.passes.ops.entmax import entmax
from sparsec.passes.ops.sparsemax import sparsemax
from sparsec.schedules.attention import Attention, Strided
from sparsec.schedules.cuda import attention_kernel, attention_tile, attention_whole
from sparsec.schedules.cuda.attention_kernel import rule
from sparsec.schedules.cuda.attention_tile import TILES, Shape, tile_for

BATCH = 2
NORMALISERS = {
    "softmax": lambda s: torch.softmax(torch.from_numpy(s), -1).numpy(),
    "sparsemax": sparsemax,
    "entmax": entmax,
}


def dense(*shape, dtype="float32"):
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Strided(int(np.prod(shape)), 0, strides, dtype)


def plain(m, n, d, e, normaliser="softmax", **more):
    places = (dense(BATCH, m, d), dense(BATCH, n, d), dense(BATCH, n, e))
    return Attention((BATCH,), m, n, d, e, *places, normaliser, alpha=1.5, **more)


def operands(spec, seed=0):
    rng = np.random.default_rng(seed)
    sizes = (spec.m, spec.d), (spec.n, spec.d), (spec.n, spec.e)
    return [rng.standard_normal((BATCH, *size)).astype("f") for size in sizes]


def run(run_emulated, spec, *arrays, checked=False):
    flat = [a.reshape(-1) for a in arrays]
    return run_emulated(spec.prim_func(), "attention", flat, (spec.y_shape, np.float32), checked=checked)


def scores(q, k):
    return q.astype("d") @ k.astype("d").swapaxes(-1, -2)


@pytest.mark.parametrize(
    "m, n, d, e, normaliser",
    [
        (1, 129, 64, 64, "softmax"),  # keys dealt out to eight warps
        (7, 31, 7, 33, "softmax"),  # to four, and copies word by word
        (65, 70, 8, 1, "softmax"),  # two blocks of queries
        (17, 129, 16, 16, "sparsemax"),
        (1, 1, 1, 7, "sparsemax"),
        (1, 1025, 5, 3, "softmax"),  # keys dealt out to three blocks, of which the last has a round of one
        (1, 1025, 5, 3, "sparsemax"),
        (17, 129, 16, 16, "entmax"),
    ],
)
def test_sizes(run_emulated, assert_close, m, n, d, e, normaliser):
    spec = plain(m, n, d, e, normaliser)
    q, k, v = operands(spec)
    want = NORMALISERS[normaliser](scores(q, k)) @ v.astype("d")
    for y in run(run_emulated, spec, q, k, v, checked=m in (7, 17)):
        assert_close(y, want)


@pytest.mark.parametrize("turned", [False, True], ids=["keys", "turned keys"])
def test_heads_inside_a_packed_projection(run_emulated, assert_close, turned):
    b, s, h, d = 2, 19, 3, 12
    x = np.random.default_rng(3).standard_normal((b, s, 3, h, d)).astype("f")
    q, k, v = x.astype("d").transpose(2, 0, 3, 1, 4)
    width = 3 * h * d
    places = [Strided(x.size, i * h * d, (s * width, d, width, 1)) for i in range(3)]
    flat = [x, x, x]
    if turned:
        flat[1] = np.ascontiguousarray(x[:, :, 1].transpose(0, 2, 3, 1))
        places[1] = Strided(flat[1].size, 0, (h * d * s, d * s, 1, s))
    spec = Attention((b, h), s, s, d, d, *places, y_order=(0, 2, 1, 3))
    want = (NORMALISERS["softmax"](scores(q, k)) @ v).transpose(0, 2, 1, 3)
    for y in run(run_emulated, spec, *flat):
        assert_close(y, want)


IS_NAN, KEYLESS = ("Where", ("IsNaN", "S"), 0.0, "S"), ("Where", ("operand", 2), 0.0, "S")


@pytest.mark.parametrize(
    "guard, normaliser, m, n",
    [
        ("S", "softmax", 6, 70),
        (IS_NAN, "softmax", 6, 70),
        (KEYLESS, "softmax", 6, 70),
        (IS_NAN, "sparsemax", 6, 70),
        (IS_NAN, "softmax", 6, 290),
        (KEYLESS, "softmax", 6, 290),
        (IS_NAN, "sparsemax", 33, 290),
        (IS_NAN, "entmax", 4, 290),
        (IS_NAN, "entmax", 33, 70),
    ],
    ids=[
        *("no guard", "by its result", "by the mask", "sparsemax"),
        *("split", "split by the mask", "spilled", "split rows", "entmax"),
    ],
)
def test_scores_masks_and_rows_without_a_key(run_emulated, monkeypatch, guard, normaliser, m, n):
    """Keys that are masked at the start, in the middle and at the end; rows of NaN and infinity.

    Of 290 keys three blocks of threads have 128 each, or the only one two tiles of queries, one by one.
    """
    d = 8
    if n == 290:
        monkeypatch.setattr(attention_tile, "_LEAST_ROUNDS", 1)
        monkeypatch.setattr(attention_whole, "_RESIDENT", 1)
        online, (split, _, spilled) = attention_kernel.KINDS
        monkeypatch.setattr(attention_kernel, "KINDS", (online, (split, spilled)))
    score = ("Where", ("operand", 1), ("Add", ("Div", "S", 2.0), ("operand", 0)), float("-inf"))
    masks = (
        Strided(n, 0, (0, 0, 1)),
        Strided(m * n, 0, (0, n, 1), "bool"),
        Strided(m, 0, (0, 1, 0), "bool"),
    )
    spec = plain(m, n, d, d, normaliser, score=score, guard=guard, operands=masks)
    rng = np.random.default_rng(4)
    q, k, v = operands(spec)
    add, keep = rng.standard_normal((1, n)).astype("f"), rng.random((m, n)) < 0.7
    add[:, -3:] = -np.inf
    keep[1, :200] = n < 200  # all keys of a block
    keep[2], keep[3, :40] = False, False
    q[0, m - 2, 0], k[1, 30, 1], v[1, 60, 0] = np.nan, np.inf, np.inf
    keyless = ~keep.any(1)
    with np.errstate(invalid="ignore"):
        share = NORMALISERS[normaliser](np.where(keep, scores(q, k) / 2 + add, -np.inf))
        if guard == IS_NAN:
            share = np.where(np.isnan(share), 0, share)
        if guard == KEYLESS:
            share = np.where(keyless[:, None], 0, share)
        want = share @ v
    for y in run(run_emulated, spec, q, k, v, add, keep, keyless, checked=n == 290):
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TILES)
def test_the_tile_is_the_first_that_fits(kind):
    tiles = TILES[kind]

    def of(m, n, d, shared=99 * 1024):
        spec = plain(m, n, d, d)
        return tile_for(spec, Shape.of(spec), shared, kind)

    assert of(1, 512, 64) == tiles[0][1]
    assert of(4096, 512, 64) in [tile for most, tile in tiles if most > 4096][:1]
    assert of(4096, 512, 512) not in (None, of(4096, 512, 64))
    assert of(4096, 512, 64, shared=1024) is None
    # Whole rows take room with every key, and there is none for rows without end.
    assert (of(64, 1 << 20, 64) is None) == (kind == "whole")


def test_what_is_left_to_other_rules(gpu):
    spec = plain(3, 5, 4, 4)
    assert rule(spec.prim_func(), gpu) is not None
    assert rule(dataclasses.replace(spec, m=0, q=dense(BATCH, 0, 4)).prim_func(), gpu) is None
    assert rule(plain(3, 5, 4, 1 << 12).prim_func(), gpu) is None
    assert rule(plain(17, 1 << 16, 4, 4, "sparsemax").prim_func(), gpu) is not None
