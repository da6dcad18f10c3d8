"""Roundings against brute force, and against the loops that their papers write down."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune import prune
from sparsec.passes.prune.moments import Problem
from sparsec.passes.quantize import rounding
from sparsec.passes.quantize.grid import Grid, fitted
from sparsec.passes.quantize.rounding import ROUNDINGS, gpfq, on_support


def coarse(rows, low=-2, high=2):
    """A grid of few numbers, so that all weights on it can be tried."""
    return Grid(np.linspace(0.5, 0.9, rows, dtype=np.float32)[:, None], 0, low, high)


def best_of_all(problem, grid, support):
    """The least error of any integers, row by row."""
    total = np.zeros_like(problem.target)
    for row, target in enumerate(problem.target):
        free = np.flatnonzero(support[row])
        trials = np.zeros((len(range(grid.low, grid.high + 1)) ** len(free), len(target)))
        trials[:, free] = list(itertools.product(range(grid.low, grid.high + 1), repeat=len(free)))
        off = trials * np.broadcast_to(grid.scale, problem.target.shape)[row] - target
        total[row] = trials[np.argmin(np.einsum("ij,jk,ik->i", off, problem.gram, off))]
    return total


def error(problem, grid, integers):
    return problem.error(integers * grid.scale.astype(np.float64))


@pytest.fixture
def small(problem):
    made = problem(6, 5, seed=3)
    return made, coarse(6), np.ones((6, 5), bool)


def test_descent_comes_near_the_best_of_all_integers(small):
    made, grid, support = small
    best = error(made, grid, best_of_all(made, grid, support))
    found = {name: error(made, grid, round_(made, grid, support)) for name, round_ in ROUNDINGS.items()}
    assert best <= found["descent"] <= found["obs"] < found["nearest"]
    assert found["descent"] <= 1.1 * best


def test_weights_of_a_row_can_have_scales_of_their_own(small):
    """Groups, one of which takes coarse steps."""
    made, grid, support = small
    grid = replace(grid, scale=np.repeat(grid.scale * np.float32([[0.5, 1.5]]), [2, 3], axis=1))
    best = error(made, grid, best_of_all(made, grid, support))
    found = {name: error(made, grid, round_(made, grid, support)) for name, round_ in ROUNDINGS.items()}
    assert best <= found["descent"] <= found["obs"] < found["nearest"]
    assert found["descent"] <= 1.1 * best
    assert found["gpfq"] < found["nearest"]
    parts = on_support(made, made.target, grid, support, ROUNDINGS["descent"])
    assert error(made, grid, parts) == pytest.approx(found["descent"])


@pytest.mark.parametrize("name", ROUNDINGS)
def test_integers_on_the_grid_and_on_the_support(problem, name):
    made = problem(17, 33, seed=1)
    support = np.random.default_rng(0).random((17, 33)) < 0.6
    grid = coarse(17, -3, 3)
    for integers in (
        ROUNDINGS[name](made, grid, support),
        on_support(made, np.where(support, made.target, 0), grid, support, ROUNDINGS[name]),
    ):
        np.testing.assert_array_equal(integers, np.clip(np.rint(integers), -3, 3))
        assert not np.any(integers[~support])


def test_errors_fall_from_method_to_method(problem):
    made = problem(31, 129, seed=2)
    grid, support = fitted(made.target, np.diag(made.gram)), np.ones((31, 129), bool)
    found = [error(made, grid, ROUNDINGS[name](made, grid, support)) for name in ROUNDINGS]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.8 * found[0]


def test_gpfq_is_the_path_of_its_paper(layer):
    """q_t = Q(<X_t, u_{t-1} + w_t X_t> / ||X_t||^2), u_t = u_{t-1} + w_t X_t - q_t X_t, on the data."""
    x, _, weight, _ = layer(7, 15, samples=60)
    x = x - x.mean(axis=0)
    made = Problem(weight, weight, x.T @ x, np.zeros(15), x.var(axis=0))
    grid = coarse(7, -5, 5)
    for threshold, soft in ((0.0, False), (0.8, False), (0.8, True)):
        expected = np.zeros_like(weight)
        for row, w in enumerate(weight):
            u, scale = np.zeros(len(x)), float(grid.scale[row, 0])
            for t in range(15):
                value = x[:, t] @ (u + w[t] * x[:, t]) / (x[:, t] @ x[:, t])
                less = np.sign(value) * max(abs(value) - threshold * scale, 0)
                value = less if soft else (value if less else 0.0)
                expected[row, t] = np.clip(np.rint(value / scale), -5, 5)
                u = u + w[t] * x[:, t] - expected[row, t] * scale * x[:, t]
        found = gpfq(made, grid, np.ones(weight.shape, bool), threshold, soft)
        np.testing.assert_array_equal(found, expected)


def test_a_threshold_makes_zeros(problem):
    made = problem(31, 33)
    grid, support = coarse(31, -7, 7), np.ones((31, 33), bool)
    zeros = [np.mean(gpfq(made, grid, support, threshold) == 0) for threshold in (0.0, 1.0, 2.0)]
    assert zeros[0] < zeros[1] < zeros[2]


def test_rounding_on_the_pattern_beats_pruning_and_then_rounding(problem):
    made = problem(32, 64, seed=5)
    pruned = prune(made, NM(2, 4, 16), "sparsegpt")
    grid = Grid(fitted(pruned.weight, np.diag(made.gram)).scale * 8, 0, -15, 15)  # 5 bits, for a clear effect
    plain = np.where(pruned.mask, grid.quantise(pruned.weight), 0)
    joint = on_support(made, pruned.weight, grid, pruned.mask, ROUNDINGS["descent"])
    floor = made.error(pruned.weight)
    assert error(made, grid, joint) - floor < 0.8 * (error(made, grid, plain) - floor)


def test_rows_a_few_at_a_time_give_the_same(problem, monkeypatch):
    made = problem(31, 33, seed=4)
    grid, support = coarse(31, -7, 7), np.ones((31, 33), bool)
    whole = on_support(made, made.target, grid, support, ROUNDINGS["obs"])
    monkeypatch.setattr(rounding, "ROWS", 7)
    np.testing.assert_array_equal(on_support(made, made.target, grid, support, ROUNDINGS["obs"]), whole)


def test_supports_of_their_own_are_smaller_problems(small):
    """Brute force on a support that differs from row to row, found through the parts."""
    made, grid, _ = small
    support = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 0]] * 3, bool)
    from sparsec.passes.prune.least_squares import on_support as refit

    start = refit(made, support)
    best = error(made, grid, best_of_all(made, grid, support))
    found = error(made, grid, on_support(made, start, grid, support, ROUNDINGS["descent"]))
    assert best <= found <= 1.15 * best
