"""The projection onto a pattern and a grid at once, against every matrix of the set on small problems."""

import itertools

import numpy as np
import pytest

from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune.layout import Layout
from sparsec.passes.quantize.grid import Grid
from sparsec.passes.quantize.projection import joint, nearest, project

PATTERN = NM(2, 4, 4)


def grid(rows, most=2):
    return Grid(np.linspace(0.5, 0.9, rows, dtype=np.float32)[:, None], 0, -most, most)


def test_nothing_in_the_set_is_nearer():
    """Four rows that share their places, four columns: all supports, all integers."""
    rng = np.random.default_rng(0)
    layout, steps = Layout.of(PATTERN, 4, 4), grid(4)
    for _ in range(20):
        weight = 1.5 * rng.standard_normal((4, 4))
        best = np.inf
        for kept in itertools.combinations(range(4), 2):
            total = np.square(np.delete(weight, kept, axis=1)).sum()
            for row, at in itertools.product(range(4), kept):
                numbers = np.arange(-2, 3) * float(steps.scale[row, 0])
                total += np.square(numbers - weight[row, at]).min()
            best = min(best, total)
        keep, found = nearest(weight, layout, steps)
        assert np.square(found - weight).sum() == pytest.approx(best)
        assert keep.sum(axis=1).tolist() == [2] and not found[:, ~keep[0]].any()


def test_no_step_raises_the_error(problem):
    made = problem(6, 16, seed=2)
    layout, steps = Layout.of(PATTERN, 6, 16), grid(6)
    errors = []
    for iterations in (0, 1, 2, 5, 30):
        keep, weight = project(made, layout, steps, made.dense, iterations)
        np.testing.assert_array_equal(np.rint(weight / steps.scale) * steps.scale, weight)
        assert (keep.reshape(2, 4, 4).sum(axis=-1) == 2).all()
        errors.append(made.error(weight))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]


def test_convolutions_keep_to_the_pattern_at_every_tap(problem):
    made = problem(4, 3 * 9, seed=1)
    weight, support = joint(made, PATTERN, 3)
    kept = support.reshape(4, 3, 9)
    assert kept[..., 8].all()  # of no group
    assert (kept[..., :8].reshape(4, 3, 2, 4).sum(axis=-1) == 2).all()
    assert (support[0] == support[1]).all() and not weight[~support].any()
    assert made.error(weight) < made.error(np.where(support, made.dense, 0.0))
