"""A pattern and a grid as one set, onto which gradient steps are projected (AWP, as `prune.awp`):

    W <- Proj(W + (T - W) G / L)

with Proj the nearest matrix that keeps to the pattern and has its weights on the grid. Instead of 0 the
nearest number q of the grid takes `z^2 - (z - q)^2` off the distance to a weight z, and a pattern keeps the
columns of each group for which that is most in the rows of a block: so Proj is exact, and with L the largest
eigenvalue of G no step raises the error.
"""

from __future__ import annotations

import numpy as np

from sparsec.passes.prune.awp import awp
from sparsec.passes.prune.layout import Layout, Pattern
from sparsec.passes.prune.least_squares import refit
from sparsec.passes.prune.moments import Problem
from sparsec.passes.quantize.grid import Grid, fitted

JOINT = "awp"
"""The method of `prune.METHODS` that has a grid in its set when a model is quantised."""
ITERATIONS = 50


def joint(problem: Problem, pattern: Pattern, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """The places `[rows, taps * in]` that stay, bool, and weights of least squares there.

    The first steps are those of `prune.awp`, without a grid, which is then put under what they have found.
    """
    rows, columns = problem.dense.shape
    layout = Layout.of(pattern, rows, columns // taps, taps)
    ordered = problem.ordered(layout.order)
    _, keep = awp(ordered, layout)
    start = refit(ordered, keep, layout)
    grid = fitted(start, np.diag(ordered.gram))
    keep, _ = project(ordered, layout, grid, np.where(layout.spread(keep), start, 0.0))
    return layout.restore(refit(ordered, keep, layout)), layout.restore(layout.spread(keep))


def project(
    problem: Problem, layout: Layout, grid: Grid, weight: np.ndarray, iterations: int = ITERATIONS
) -> tuple[np.ndarray, np.ndarray]:
    """`(keep [blocks, K], weight [rows, K])` after so many steps from `weight`, or where nothing moves."""
    step = 1.0 / float(np.linalg.eigvalsh(problem.gram)[-1])
    keep, weight = nearest(weight, layout, grid)
    for _ in range(iterations):
        keep, moved = nearest(weight + step * (problem.target - weight) @ problem.gram, layout, grid)
        if np.array_equal(moved, weight):
            break
        weight = moved
    return keep, weight


def nearest(weight: np.ndarray, layout: Layout, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """`(keep [blocks, K], weight [rows, K])` of what is nearest to `weight` in the set."""
    whole = grid.nearest(weight)
    keep = layout.best(np.square(weight) - np.square(weight - whole))
    return keep, np.where(layout.spread(keep), whole, 0.0)
