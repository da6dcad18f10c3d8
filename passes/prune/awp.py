"""AWP: projected gradient descent on the layer's error (iterative hard thresholding; Liu et al., 2025).

    W <- Proj(W + (T - W) G / L)

with L the largest eigenvalue of G, so that no step raises the error, and Proj the nearest matrix that keeps
to the pattern: in each group of a block the n columns with the most energy.
"""

from __future__ import annotations

import numpy as np

from sparsec.passes.prune import scores
from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.moments import Problem

ITERATIONS = 100


def awp(problem: Problem, layout: Layout, iterations: int = ITERATIONS) -> tuple[np.ndarray, np.ndarray]:
    """`(weight [rows, K], keep [blocks, K])`, starting from Wanda's mask."""
    step = 1.0 / float(np.linalg.eigvalsh(problem.gram)[-1])
    keep = layout.best(scores.wanda(problem))
    weight = np.where(layout.spread(keep), problem.target, 0.0)
    for _ in range(iterations):
        moved = weight + step * (problem.target - weight) @ problem.gram
        keep = layout.best(np.square(moved))
        weight = np.where(layout.spread(keep), moved, 0.0)
    return weight, keep
