"""The best values of the weights that are kept: exact least squares on the support.

With rows that share their support S, `W_S = (T G)_S G_SS^-1`: one factorisation serves the whole block. Where
most columns stay, the few that go, P, are eliminated instead: `W = T - T_P (H_PP)^-1 H_P` with `H = G^-1`.
"""

from __future__ import annotations

import numpy as np

from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.moments import Problem


def refit(problem: Problem, keep: np.ndarray, layout: Layout) -> np.ndarray:
    """The `[rows, K]` weight of least error among those that are zero where `keep` `[blocks, K]` is False."""
    return on_support(problem, layout.spread(keep))


def on_support(problem: Problem, mask: np.ndarray) -> np.ndarray:
    """The `[rows, K]` weight of least error among those that are zero where `mask` `[rows, K]` is False."""
    wanted = problem.target @ problem.gram
    most = mask.shape[1] // 2
    weight = np.zeros_like(problem.target)
    _, first, which = np.unique(np.packbits(mask, axis=1), axis=0, return_index=True, return_inverse=True)
    for index, row in enumerate(first):
        rows, support = np.flatnonzero(which.ravel() == index), np.flatnonzero(mask[row])
        if len(support) > most:
            gone = np.flatnonzero(~mask[row])
            inner = problem.inverse[np.ix_(gone, gone)]
            answer = np.linalg.solve(inner, problem.target[np.ix_(rows, gone)].T).T
            solved = problem.target[np.ix_(rows, support)] - answer @ problem.inverse[np.ix_(gone, support)]
        else:
            gram = problem.gram[np.ix_(support, support)]
            solved = np.linalg.solve(gram, wanted[np.ix_(rows, support)].T).T
        weight[np.ix_(rows, support)] = solved
    return weight
