"""The search for an order of channels against brute force and planted answers, in float64."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.least_squares import on_support
from sparsec.passes.prune.permutation import (
    Maker,
    Reader,
    _by_columns,
    cluster,
    column_scores,
    row_costs,
    row_scores,
    search,
)


def kept(score, n, m):
    """What groups of m consecutive columns keep of `score`."""
    groups = np.sort(score.reshape(len(score), -1, m), axis=-1)
    return groups[..., m - n :].sum()


def test_row_costs_are_the_errors_of_least_squares(problem):
    posed = problem(5, 9)
    keep = np.random.default_rng(1).random((3, 9)) < 0.6
    costs = row_costs(posed, keep)
    for row, block in itertools.product(range(5), range(3)):
        one = replace(posed, dense=posed.dense[[row]], target=posed.target[[row]], rest=0.0)
        solved = on_support(one, keep[[block]])
        assert costs[row, block] == pytest.approx(one.error(solved), rel=1e-9)


def test_row_scores_are_the_errors_without_one_column(problem):
    posed = problem(3, 7)
    scores = row_scores(posed)
    for column in range(7):
        costs = row_costs(posed, np.arange(7)[None] != column)
        np.testing.assert_allclose(scores[:, column], costs[:, 0], rtol=1e-9)


def test_column_scores_sum_over_the_rows_of_a_block_and_part_the_taps(problem):
    posed = problem(5, 6)
    scores, rows = column_scores(posed, 2, taps=3), row_scores(posed)
    assert scores.shape == (3 * 3, 2)
    np.testing.assert_allclose(scores[0], rows[:2, :2].sum(axis=0))
    np.testing.assert_allclose(scores[-1], rows[4, 4:])


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (1, 4), (6, 8)])
def test_the_gain_of_an_exchange_is_what_is_kept_more(n, m):
    score = np.random.default_rng(m + n).random((3, 2 * m))
    gain = _by_columns(score[:, None, :m], score[:, None, m:], n)[0]
    for i, j in itertools.product(range(m), range(m)):
        order = np.arange(2 * m)
        order[i], order[m + j] = m + j, i
        assert gain[i, j] == pytest.approx(kept(score[:, order], n, m) - kept(score, n, m))


@pytest.mark.parametrize("seed", range(5))
def test_columns_come_near_the_best_of_all_orders(seed):
    score = np.random.default_rng(seed).exponential(size=(2, 8))
    best = max(
        kept(score[:, [0, *rest, *sorted(set(range(1, 8)) - set(rest))]], 2, 4)
        for rest in itertools.combinations(range(1, 8), 3)
    )
    found = search(np.arange(8), 8, [], Reader(score, 2, 4))
    assert kept(score, 2, 4) <= kept(score[:, found], 2, 4)
    assert kept(score[:, found], 2, 4) >= 0.98 * best


def test_columns_that_matter_do_not_meet():
    """33 columns, of which the first 16 matter: 2:4 can keep them all; the last is in no group and stays."""
    score = np.ones((1, 33))
    score[:, :16] = 100
    order = search(np.arange(33), 33, [], Reader(score, 2, 4))
    assert order[-1] == 32
    assert kept(score[:, order[:32]], 2, 4) == 1600


def test_rows_that_want_the_same_come_together():
    """Four kinds of rows, each free of cost with one support; and what a reader wants is not made worse."""
    kind = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 4))
    cost = (kind[:, None] != np.arange(4)).astype(float)
    order = search(np.arange(16), 16, [Maker(cost, 4)], None)
    assert cost[order, np.arange(16) // 4].sum() == 0


def test_both_sides_count():
    """A maker that wants halves, a reader that wants important channels apart: both can have it."""
    cost = np.repeat(np.array([[0.0, 1.0], [1.0, 0.0]]), 8, axis=0)
    score = np.tile([9.0, 9, 9, 9, 1, 1, 1, 1], 2)[None]
    start = np.random.default_rng(3).permutation(16)
    order = search(start, 16, [Maker(cost, 8)], Reader(score, 2, 4))
    assert cost[order, np.arange(16) // 8].sum() == 0
    assert kept(score[:, order], 2, 4) == 72


def test_channels_stay_in_their_run():
    score = np.random.default_rng(0).random((1, 24))
    order = search(np.arange(24), 8, [], Reader(score, 1, 4))
    np.testing.assert_array_equal(order // 8, np.arange(24) // 8)
    assert kept(score[:, order], 1, 4) > kept(score, 1, 4)


@pytest.mark.parametrize("run", [32, 16])
def test_clusters_are_the_rows_of_one_support(run):
    """Rows with one of two supports in each run, mixed."""
    rng = np.random.default_rng(0)
    supports = np.stack([np.tile([1, 1, 0, 0], 8), np.tile([0, 1, 0, 1], 8)])
    kind = np.concatenate([rng.permutation(np.repeat([0, 1], run // 2)) for _ in range(32 // run)])
    rise = supports[kind] * rng.uniform(1, 2, (32, 32))
    order = cluster(rise, Layout.of(NM(2, 4, 8), 32, 32), run)
    np.testing.assert_array_equal(np.sort(order), np.arange(32))
    np.testing.assert_array_equal(order // run, np.arange(32) // run)
    assert all(len(set(block)) == 1 for block in kind[order].reshape(-1, 8))
