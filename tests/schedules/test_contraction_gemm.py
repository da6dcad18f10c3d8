"""Gemm against float64 NumPy: the definition as it stands, and the kernel of each CPU level."""

import numpy as np
import pytest

from sparsec.schedules.contraction import Gemm, find_anchor, packed_for
from sparsec.schedules.contraction_rule import rule
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.target import X86_LEVELS

LEVELS = [
    pytest.param(X86_LEVELS["v2"], id="v2"),
    pytest.param(X86_LEVELS["v3"], id="v3", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param(X86_LEVELS["v4"], id="v4", marks=pytest.mark.isa("avx512f", "avx512vl")),
]
SIZES = [
    (1, 1, 1), (1, 7, 33), (2, 8, 15), (3, 9, 16), (7, 16, 17), (8, 31, 32), (9, 33, 31), (15, 63, 65),
    (16, 65, 63), (17, 127, 129), (31, 32, 127), (33, 17, 8), (65, 15, 9), (129, 3, 2), (197, 2, 7),
    (63, 129, 197),
    (127, 197, 3),
]  # fmt: skip
PATTERNS = [
    Pattern(2, 4, 32), Pattern(1, 4, 16), Pattern(3, 5, 48), Pattern(1, 3, 1), Pattern(2, 4, 1),
    Pattern(1, 2, 4), Pattern(2, 8, 8), Pattern(5, 16, 1), Pattern(2, 6, 4), Pattern(1, 32, 2),
]  # fmt: skip


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("m,k,n", SIZES)
def test_dense_of_every_size(run_kernel, assert_close, cpu, m, k, n):
    rng = np.random.default_rng(m * k * n)
    gemm = Gemm((m,), k, n)
    x, w = rng.standard_normal((m, k)).astype("f"), rng.standard_normal((n, k)).astype("f")
    got = run_kernel(rule(gemm.prim_func(), cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape)
    assert_close(got, x.astype("d") @ w.T.astype("d"))


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("m,k,n", [(1, 67, 50), (5, 128, 32), (16, 3, 17), (33, 96, 129)])
def test_patterns(run_kernel, assert_close, pruned_weight, cpu, pattern, m, k, n):
    rng = np.random.default_rng(7)
    gemm = Gemm((m,), k, n, pattern)
    x, w = rng.standard_normal((m, k)).astype("f"), pruned_weight(rng, pattern, n, 1, k)[:, 0]
    got = run_kernel(rule(gemm.prim_func(), cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape)
    assert_close(got, x.astype("d") @ w.T.astype("d"))


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4, 4), Pattern(9, 64, 1, True),
                                     Pattern(9, 64, 4, True)], ids=str)  # fmt: skip
@pytest.mark.parametrize("m,k,n", [(1, 40, 20), (15, 17, 31), (17, 530, 33), (65, 129, 16), (197, 1100, 40)])
def test_strips_of_every_size(run_kernel, assert_close, pruned_weight, cpu, pattern, m, k, n):
    rng = np.random.default_rng(m + k)
    gemm = Gemm((m,), k, n, pattern)
    x, w = rng.standard_normal((m, k)).astype("f"), pruned_weight(rng, pattern, n, 1, k)[:, 0]
    got = run_kernel(rule(gemm.prim_func(), cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape)
    assert_close(got, x.astype("d") @ w.T.astype("d"))
    np.testing.assert_array_equal(gemm.unpack(gemm.pack(w)), w)


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4, 4), Pattern(3, 7)], ids=str)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 3, 17), (5, 33, 15), (31, 130, 33)])
def test_strips_of_few_rows_without_a_permute(run_kernel, assert_close, pruned_weight, pattern, m, k, n):
    rng = np.random.default_rng(m)
    gemm, cpu = packed_for(Gemm((m,), k, n, pattern), permute=False), X86_LEVELS["v2"]
    assert gemm.strips is not None
    x, w = rng.standard_normal((m, k)).astype("f"), pruned_weight(rng, pattern, n, 1, k)[:, 0]
    got = run_kernel(rule(gemm.prim_func(), cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape)
    assert_close(got, x.astype("d") @ w.T.astype("d"))


@pytest.mark.parametrize("pattern", [DENSE, *PATTERNS, Pattern(9, 64, 4, True)], ids=str)
@pytest.mark.parametrize("k", [3, 21, 64])
def test_the_definition_is_right_unscheduled(run_kernel, assert_close, pruned_weight, pattern, k):
    rng = np.random.default_rng(11)
    gemm = Gemm((2, 3), k, 37, pattern)
    x, w = rng.standard_normal((2, 3, k)).astype("f"), pruned_weight(rng, pattern, 37, 1, k)[:, 0]
    got = run_kernel(gemm.prim_func(), X86_LEVELS["v2"], [x, *gemm.pack(w)], gemm.y_shape)
    assert_close(got, x.astype("d") @ w.T.astype("d"))


@pytest.mark.parametrize("lead", [(), (1,), (3, 5), (1, 7, 1, 2)])
def test_leading_dims_keep_their_rank(run_kernel, assert_close, lead):
    rng = np.random.default_rng(3)
    gemm, cpu = Gemm(lead, 24, 40), X86_LEVELS["v2"]
    x, w = rng.standard_normal(gemm.x_shape).astype("f"), rng.standard_normal((40, 24)).astype("f")
    got = run_kernel(rule(gemm.prim_func(), cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape)
    assert_close(got, np.asarray(x.astype("d") @ w.T.astype("d")))


def test_the_anchor_carries_its_spec():
    gemm = Gemm((2, 5), 40, 20, Pattern(2, 4, 16))
    spec, block = find_anchor(gemm.prim_func())
    assert spec == gemm and block.name_hint == "gemm"


def test_pack_names_the_shape_it_wants():
    with pytest.raises(ValueError, match=r"Gemm.pack: required a weight of shape \[4, 8\], found \[8, 4\]"):
        Gemm((1,), 8, 4).pack(np.zeros((8, 4), "f"))
