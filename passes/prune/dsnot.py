"""DSnoT: prune and grow without touching the weights (Zhang et al., "Dynamic Sparse No Training", 2024).

A mask changes row r's mean output by `e_r = -sum_pruned w_rj E[x_j]`. While that shrinks, the pruned weight
that takes most off it for its input's variance grows (largest `-sign(e_r) w_rj E[x_j] / Var[x_j]`), and of
the kept weights whose loss takes from it too, the one with the least Wanda score goes. Inside N:M both are of
one group; in a block the quantities are summed over its rows.
"""

from __future__ import annotations

import numpy as np

from sparsec.passes.prune import scores
from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.moments import Problem

CYCLES = 50
_TINY = 1e-12


def dsnot(problem: Problem, layout: Layout, cycles: int = CYCLES) -> np.ndarray:
    """keep `[blocks, K]`, starting from Wanda's mask; each block stops when its summed |e| falls no more."""
    keep = layout.best(scores.wanda(problem))
    loss = np.sqrt(scores.wanda(problem))
    effect = problem.dense * problem.mean  # of each weight on the mean output
    for index in range(layout.blocks):
        rows = layout.block_rows(index)
        for _ in range(cycles):
            if not _swap(keep[index], effect[rows], loss[rows], problem.variance, layout):
                break
    return keep


def _swap(
    keep: np.ndarray, effect: np.ndarray, loss: np.ndarray, variance: np.ndarray, layout: Layout
) -> bool:
    """One exchange in `keep`, in place; False, and nothing done, where it would not help."""
    error = -effect[:, ~keep].sum(axis=1)
    towards = (-np.sign(error)[:, None] * effect).sum(axis=0)  # what growing takes off the error
    grouped = np.arange(len(keep)) < layout.grouped
    gain = np.where(grouped & ~keep, towards / (variance + _TINY), -np.inf)
    grow = int(np.argmax(gain))
    group = np.arange(len(keep)) // layout.m == grow // layout.m
    # Losing a weight adds to the error what growing it takes off: those of the other sign help as well.
    candidates = group & grouped & keep & (towards < 0)
    if not gain[grow] > 0 or not candidates.any():
        return False
    drop = int(np.argmin(np.where(candidates, loss.sum(axis=0), np.inf)))
    after = error + effect[:, grow] - effect[:, drop]
    if not np.abs(after).sum() < np.abs(error).sum():
        return False
    keep[grow], keep[drop] = True, False
    return True
