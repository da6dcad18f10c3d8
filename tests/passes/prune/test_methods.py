"""Every way of choosing against loops, closed forms and the best of all masks, in float64."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from sparsec.passes import PassError
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune import METHODS, Layout, Unstructured, obs, prune, scores
from sparsec.passes.prune.awp import awp
from sparsec.passes.prune.descent import descent
from sparsec.passes.prune.dsnot import dsnot
from sparsec.passes.prune.least_squares import refit
from sparsec.passes.prune.obs import greedy, sparsegpt

PATTERNS = [NM(2, 4), NM(1, 4, 4), NM(2, 4, 8), NM(3, 5, 4), NM(6, 8), NM(4, 16, 4), Unstructured(0.5, 4)]


def solve(problem, row, support):
    """The optimum on a support by SciPy: (weights, error)."""
    support = list(support)
    right = problem.gram[support] @ problem.target[row]
    values = scipy.linalg.solve(problem.gram[np.ix_(support, support)], right, assume_a="pos")
    weight = np.zeros(problem.gram.shape[0])
    weight[support] = values
    off = weight - problem.target[row]
    return weight, float(off @ problem.gram @ off)


def optimum(problem, rows, supports):
    """The support of least error for `rows` together, by trying all."""
    return min(supports, key=lambda s: sum(solve(problem, row, s)[1] for row in rows))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_least_squares_on_the_support(problem, pattern):
    p = problem(10, 33)
    layout = Layout.of(pattern, 10, 33)
    keep = layout.best(scores.energy(p))
    weight = refit(p, keep, layout)
    for row, kept in enumerate(layout.spread(keep)):
        np.testing.assert_allclose(weight[row], solve(p, row, np.flatnonzero(kept))[0], rtol=1e-8, atol=1e-10)


def test_wanda_is_magnitude_times_input_norm(layer, problem):
    x, _, weight, _ = layer(5, 16)
    expected = np.abs(weight) * np.linalg.norm(x, axis=0)
    score = np.sqrt(scores.wanda(problem(5, 16)) * len(x))
    np.testing.assert_allclose(score, expected, rtol=1e-10)


def sparsegpt_by_loops(p, n, m, block):
    """Column after column, each with the inverse of the Hessian of what lies further right."""
    weight = p.target.copy()
    rows, width = weight.shape
    keep = np.ones((rows, width), bool)
    for column in range(width):
        rest = np.arange(column, width)
        inverse = np.linalg.inv(p.gram[np.ix_(rest, rest)])
        if column % m == 0 and column + m <= width:
            # The pivots of the group's columns, each with those before it gone.
            pivots = [np.linalg.inv(p.gram[c:, c:])[0, 0] for c in range(column, column + m)]
            for first in range(0, rows, block):
                rise = np.square(weight[first : first + block, column : column + m]).sum(0) / pivots
                gone = np.argsort(-rise, kind="stable")[n:]
                keep[first : first + block, column + gone] = False
        for row in range(rows):
            if not keep[row, column]:
                weight[row, rest] -= weight[row, column] / inverse[0, 0] * inverse[0]
    return np.where(keep, weight, 0), keep


@pytest.mark.parametrize("chunk", [8, 128])
@pytest.mark.parametrize("n, m, block", [(2, 4, 1), (1, 4, 4), (3, 8, 8), (2, 5, 4)])
def test_sparsegpt_against_its_definition(problem, n, m, block, chunk, monkeypatch):
    monkeypatch.setattr(obs, "CHUNK", chunk)
    p = problem(9, 17)
    layout = Layout.of(NM(n, m, block), 9, 17)
    weight, keep = sparsegpt(p, layout)
    expected, kept = sparsegpt_by_loops(p, n, m, layout.block)
    np.testing.assert_array_equal(layout.spread(keep), kept)
    np.testing.assert_allclose(weight, expected, rtol=1e-7, atol=1e-9)


def test_sparsegpt_decides_long_rows_in_parts(problem):
    layout = Layout.of(Unstructured(0.6), 3, 300)
    _, keep = sparsegpt(problem(3, 300), layout)
    assert keep.sum(axis=1).tolist() == [120, 120, 120]
    assert keep[:, :150].sum(axis=1).tolist() == [60, 60, 60]  # two parts, the same share of each


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_greedy_elimination_against_solving_anew(problem, pattern):
    p = problem(8, 18)
    layout = Layout.of(pattern, 8, 18)
    weight, keep = greedy(p, layout)
    for index in range(layout.blocks):
        rows, left = range(*layout.block_rows(index).indices(8)), set(range(18))
        for _ in range(layout.groups * (layout.m - layout.n)):
            counts = [len(left & set(range(g * layout.m, (g + 1) * layout.m))) for g in range(layout.groups)]
            may_go = [j for j in left if j < layout.grouped and counts[j // layout.m] > layout.n]
            left -= {min(may_go, key=lambda j: sum(solve(p, r, left - {j})[1] for r in rows))}
        assert set(np.flatnonzero(keep[index])) == left
        for row in rows:
            np.testing.assert_allclose(weight[row], solve(p, row, left)[0], rtol=1e-6, atol=1e-8)


def test_elimination_of_several_at_once_keeps_the_pattern_and_the_optimum(problem):
    p = problem(8, 64)
    layout = Layout.of(NM(2, 4, 8), 8, 64)
    weight, keep = greedy(p, layout, steps=5)
    assert (keep.reshape(16, 4).sum(axis=1) == 2).all()
    np.testing.assert_allclose(weight, refit(p, keep, layout), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("n, m, block", [(2, 4, 1), (2, 8, 4), (3, 8, 1), (4, 7, 4)])
def test_descent_finds_the_best_mask_of_one_group(problem, n, m, block):
    p = problem(4, m)
    layout = Layout.of(NM(n, m, block), 4, m)
    keep = layout.best(scores.random(p))
    weight, keep = descent(p, keep, refit(p, keep, layout), layout)
    for index in range(layout.blocks):
        rows = range(4)[layout.block_rows(index)]
        assert tuple(np.flatnonzero(keep[index])) == optimum(p, rows, itertools.combinations(range(m), n))
        for row in rows:
            np.testing.assert_allclose(weight[row], solve(p, row, np.flatnonzero(keep[index]))[0], rtol=1e-7)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_descent_never_raises_the_error(problem, pattern, seed):
    p = problem(10, 33, seed)
    layout = Layout.of(pattern, 10, 33)
    keep = layout.best(scores.wanda(p))
    before = refit(p, keep, layout)
    weight, after = descent(p, keep, before, layout)
    assert p.error(weight) <= p.error(before) * (1 + 1e-12)
    assert not np.any(weight[~layout.spread(after)])
    np.testing.assert_array_equal(after.sum(axis=1), keep.sum(axis=1))


def test_descent_with_exchanges_reaches_a_point_no_exchange_improves(problem):
    p = problem(4, 16)
    layout = Layout.of(NM(4, 16, 4), 4, 16)
    keep = layout.best(scores.random(p))
    weight, keep = descent(p, keep, refit(p, keep, layout), layout, sweeps=50)
    kept = set(np.flatnonzero(keep[0]))
    for drop, grow in itertools.product(kept, set(range(16)) - kept):
        error = sum(solve(p, row, sorted(kept - {drop} | {grow}))[1] for row in range(4))
        assert error >= sum(solve(p, row, sorted(kept))[1] for row in range(4)) * (1 - 1e-9)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_awp_against_its_formula(problem, pattern):
    p = problem(8, 33)
    layout = Layout.of(pattern, 8, 33)
    weight = np.where(layout.spread(layout.best(scores.wanda(p))), p.target, 0)
    step = 1 / scipy.linalg.eigh(p.gram, eigvals_only=True)[-1]
    errors = [p.error(weight)]
    for _ in range(7):
        weight = weight - step * (weight @ p.gram - p.target @ p.gram)
        weight = np.where(layout.spread(layout.best(weight**2)), weight, 0)
        errors.append(p.error(weight))
    np.testing.assert_allclose(awp(p, layout, iterations=7)[0], weight, rtol=1e-8, atol=1e-10)
    assert all(b <= a for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(2, 8, 4), Unstructured(0.5)], ids=str)
def test_dsnot_lowers_the_mean_error_and_keeps_the_pattern(problem, pattern):
    p = problem(8, 33)
    layout = Layout.of(pattern, 8, 33)
    start, keep = layout.best(scores.wanda(p)), dsnot(p, layout)
    np.testing.assert_array_equal(keep.sum(axis=1), start.sum(axis=1))

    def mean_error(kept):
        return np.abs(np.where(layout.spread(kept), 0, p.dense) @ p.mean).sum()

    assert mean_error(keep) < mean_error(start)


@pytest.mark.parametrize("seed", [1, 3])
def test_dsnot_takes_the_first_exchange_of_the_paper(problem, seed):
    p = problem(1, 32, seed)
    layout = Layout.of(Unstructured(0.5), 1, 32)
    start = layout.best(scores.wanda(p))[0]
    after = dsnot(p, layout, cycles=1)[0]
    w, e, v = p.dense[0], p.mean, p.variance
    error = -sum(w[j] * e[j] for j in range(32) if not start[j])
    grow = max((j for j in range(32) if not start[j]), key=lambda j: -np.sign(error) * w[j] * e[j] / v[j])
    fits = [j for j in range(32) if start[j] and -np.sign(error) * w[j] * e[j] < 0]
    drop = min(fits, key=lambda j: abs(w[j]) * np.sqrt(v[j] + e[j] ** 2))
    expected = start.copy()
    if abs(error + w[grow] * e[grow] - w[drop] * e[drop]) < abs(error):
        expected[grow], expected[drop] = True, False
    np.testing.assert_array_equal(after, expected)
    assert (after != start).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_method_gives_the_pattern_and_reconstruction_never_hurts(problem, method, pattern):
    p = problem(10, 34)
    raw, result = (prune(p, pattern, method, taps=2, reconstruct=r) for r in (False, True))
    layout = Layout.of(pattern, 10, 17, 2)
    np.testing.assert_array_equal(raw.mask, result.mask)
    ordered = result.mask[:, layout.order]
    for start in range(0, layout.grouped, layout.m):
        assert (ordered[:, start : start + layout.m].sum(axis=1) == layout.n).all()
    for first in range(0, 10, layout.block):
        assert (ordered[first : first + layout.block] == ordered[first]).all()
    assert not result.weight[~result.mask].any()
    report = result.report
    assert report.error_after == pytest.approx(p.error(result.weight))
    assert report.error_after <= min(raw.report.error_after, report.error_before) + 1e-12
    assert report.kept == pytest.approx(result.mask.mean())
    if method not in ("awp", "sparsegpt", "obs", "search"):
        np.testing.assert_array_equal(raw.weight, np.where(raw.mask, p.dense, 0))


def test_search_is_near_the_best_of_all_masks(problem):
    """Three groups of 2:4 have 6^3 masks."""
    ratios = []
    for seed in range(10):
        p = problem(4, 12, seed)
        groups = [[(c + 4 * g, d + 4 * g) for c, d in itertools.combinations(range(4), 2)] for g in range(3)]
        supports = [sum(choice, ()) for choice in itertools.product(*groups)]
        best = optimum(p, range(4), supports)
        least = sum(solve(p, row, best)[1] for row in range(4))
        found = prune(p, NM(2, 4, 4), "search").weight - p.target
        ratios.append(np.sum((found @ p.gram) * found) / least)
    assert min(ratios) == pytest.approx(1) and np.mean(ratios) < 1.2


def test_an_unknown_method_is_named(problem):
    with pytest.raises(PassError, match="prune: method must be one of random, .*, search, found 'luck'"):
        prune(problem(2, 8), NM(2, 4), "luck")
