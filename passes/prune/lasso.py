"""Which input channels a layer can do without: LASSO on the channels' shares of its output (He et al., 2017).

With `Z_c = X_c W_c^T` what channel c adds to the output, the factors b of

    min_b  1/2 ||Y - sum_c b_c Z_c||^2 + penalty * sum_c |b_c|

are zero for the channels that others make up for; the penalty grows until no more are left than may stay.
Only `<Z_c, Z_d>` and `<Y, Z_c>` are needed, and both follow from the sums of calibration (`Problem`):
with S the `[K, C]` indicator of which column belongs to which channel, `A = S^T (G * W^T W) S` and
`h = S^T diag((T G)^T W)`. ("Channel pruning for accelerating very deep neural networks", eq. 2; the least
squares of the kept channels, eq. 3, are `least_squares`.)
"""

from __future__ import annotations

import numpy as np

from sparsec.passes.prune.moments import Problem

SWEEPS = 200
TOLERANCE = 1e-6
HALVINGS = 30


def shares(problem: Problem, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(A [C, C], h [C])` relative to the error's scale; `owner` `[K]` is the channel of each column."""
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(owner.max() + 1))
    dense = problem.dense[:, order]
    inner = problem.gram[np.ix_(order, order)] * (dense.T @ dense)
    wanted = ((problem.target @ problem.gram)[:, order] * dense).sum(axis=0)
    inner = np.add.reduceat(np.add.reduceat(inner, starts, axis=0), starts, axis=1)
    return inner / problem.scale, np.add.reduceat(wanted, starts) / problem.scale


def lasso(inner: np.ndarray, wanted: np.ndarray, penalty: float, start: np.ndarray) -> np.ndarray:
    """The factors `[C]` of least `1/2 b^T A b - h^T b + penalty * |b|_1`, by coordinate descent."""
    factors = start.copy()
    residual = wanted - inner @ factors
    diagonal = np.maximum(np.diag(inner), 1e-300)
    scale = np.sqrt(diagonal)
    for _ in range(SWEEPS):
        moved = 0.0
        for c in np.flatnonzero((factors != 0) | (np.abs(residual) > penalty)):
            open_ = residual[c] + diagonal[c] * factors[c]
            new = np.sign(open_) * max(abs(open_) - penalty, 0.0) / diagonal[c]
            if (step := new - factors[c]) != 0.0:
                factors[c] = new
                residual -= step * inner[c]
                moved = max(moved, abs(step) * scale[c])
        if moved <= TOLERANCE * max(scale.max(), 1e-300):
            break
    return factors


def select(inner: np.ndarray, wanted: np.ndarray, count: int) -> np.ndarray:
    """bool `[C]`: the `count` channels that stay, of those that the largest penalty leaves with enough.

    Where these are more than `count`, those with the largest shares of the output are taken.
    """
    low, high = 0.0, float(np.abs(wanted).max())
    factors = best = lasso(inner, wanted, 0.0, np.ones(len(wanted)))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        factors = lasso(inner, wanted, middle, factors)
        left = np.count_nonzero(factors)
        if left >= count:
            low, best = middle, factors
        else:
            high = middle
        if left == count:
            break
    share = np.abs(best) * np.sqrt(np.maximum(np.diag(inner), 0.0))
    kept = np.zeros(len(wanted), bool)
    kept[np.argsort(-share, kind="stable")[:count]] = True
    return kept
