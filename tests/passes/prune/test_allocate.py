"""The knapsack against brute force over all assignments."""

import itertools

import numpy as np
import pytest

from sparsec.passes.prune.allocate import STEPS, Option, Point, frontier, knee, point


def problem(seed, layers=5, options=4):
    rng = np.random.default_rng(seed)
    return [
        [Option(str(i), float(c), float(e)) for i, (c, e) in enumerate(rng.random((options, 2)))]
        for _ in range(layers)
    ]


def best_by_force(layers, budget):
    points = (point(layers, picks) for picks in itertools.product(*(range(len(o)) for o in layers)))
    return min((p.error for p in points if p.cost <= budget), default=np.inf)


@pytest.mark.parametrize("seed", range(8))
def test_no_assignment_is_better_than_the_frontier(seed):
    """But for the rounding of costs: a hundredth more budget buys at least what force finds."""
    layers = problem(seed)
    points = frontier(layers)
    for budget in np.linspace(points[-1].cost, points[0].cost, 20):
        slack = (points[0].cost - points[-1].cost) * 2 / STEPS
        ours = min(p.error for p in points if p.cost <= budget + slack)
        assert ours <= best_by_force(layers, budget) + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_sums_are_those_of_the_picks_and_no_point_is_beaten(seed):
    layers = problem(seed)
    points = frontier(layers)
    for p in points:
        assert p == point(layers, p.picks)
    costs, errors = [p.cost for p in points], [p.error for p in points]
    assert costs == sorted(costs, reverse=True) and errors == sorted(errors)
    assert len(set(costs)) == len(set(errors)) == len(points) > 3


def test_the_ends_are_the_extremes():
    layers = problem(0)
    points = frontier(layers)
    assert points[0].error == pytest.approx(sum(min(o.error for o in options) for options in layers))
    assert points[-1].cost == pytest.approx(sum(min(o.cost for o in options) for options in layers))


def test_one_option_and_equal_costs():
    assert frontier([[Option("dense", 1.0, 0.0)]]) == [Point((0,), 1.0, 0.0)]
    same = [[Option("a", 1.0, 0.2), Option("b", 1.0, 0.1)]] * 3
    assert frontier(same) == [Point((1, 1, 1), 3.0, pytest.approx(0.3))]


def test_a_layer_without_options():
    with pytest.raises(ValueError, match="every layer needs an option"):
        frontier([[Option("dense", 1.0, 0.0)], []])


def test_knee():
    """Error is nearly free down to cost 4 and explodes below."""
    points = [Point((i,), 10.0 - i, 0.01 * i if i <= 6 else 0.06 + 2.0 * (i - 6)) for i in range(10)]
    assert knee(points).cost == 4.0
    assert knee(points[:1]) == points[0]


def test_the_costliest_choice_is_there_wherever_the_grid_lies():
    layers = [[Option("dense", cost, 0.0), Option("sparse", 0.1, 1.0)] for cost in (1.0, np.e, np.pi)]
    assert frontier(layers)[0].picks == (0, 0, 0)
