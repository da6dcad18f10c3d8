"""The best values of the weights that are kept: exact least squares on the support.

With rows that share their support S, `W_S = (T G)_S G_SS^-1`: one factorisation serves the whole block.
"""

from __future__ import annotations

import numpy as np

from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.moments import Problem


def refit(problem: Problem, keep: np.ndarray, layout: Layout) -> np.ndarray:
    """The `[rows, K]` weight of least error among those that are zero where `keep` `[blocks, K]` is False."""
    wanted = problem.target @ problem.gram
    weight = np.zeros_like(problem.target)
    for index, kept in enumerate(keep):
        rows, support = layout.block_rows(index), np.flatnonzero(kept)
        solved = np.linalg.solve(problem.gram[np.ix_(support, support)], wanted[rows, support].T)
        weight[rows, support] = solved.T
    return weight
