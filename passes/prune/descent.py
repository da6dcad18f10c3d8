"""Local search on the layer's error: every group chooses its columns anew, with all other groups fixed.

With the rest of a row fixed, the error is a quadratic in the m weights of one group: for each choice S of n
columns the best values are `G_SS^-1 h_S` and save `h_S^T G_SS^-1 h_S`, with `h` the gradient at zero. All
choices are tried (or, where there are too many, those one exchange away), the saving is summed over the rows
of a block, and the best is taken: no step raises the error. A sweep passes over all groups once.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.moments import Problem

SWEEPS = 8
MAX_CHOICES = 100  # 2:8 and 6:8 have 28, 4:8 has 70; 4:16 has 1820
MAX_GROUP = 64  # beyond, a group is a whole row, and its exchanges are too many to try
_SETTLED = 1e-3  # of the groups changed in the last sweep: enough


def descent(
    problem: Problem, keep: np.ndarray, weight: np.ndarray, layout: Layout, sweeps: int = SWEEPS
) -> tuple[np.ndarray, np.ndarray]:
    """`(weight, keep)` of no more error than those given, which are left as they are."""
    weight, keep = weight.copy(), keep.copy()
    if layout.m > MAX_GROUP:
        return weight, keep
    gradient = (problem.target - weight) @ problem.gram
    for _ in range(sweeps):
        changed = sum(
            _choose(problem, keep, weight, gradient, layout, start)
            for start in range(0, layout.grouped, layout.m)
        )
        if changed <= _SETTLED * layout.blocks * layout.groups:
            break
    return weight, keep


def _choose(
    problem: Problem,
    keep: np.ndarray,
    weight: np.ndarray,
    gradient: np.ndarray,
    layout: Layout,
    start: int,
) -> int:
    """Choose the columns of the group at `start` in every block, in place; how many blocks changed."""
    columns = slice(start, start + layout.m)
    gram = problem.gram[columns, columns]
    open_ = gradient[:, columns] + weight[:, columns] @ gram  # the gradient with the group at zero
    choices = _choices(keep[:, columns], layout)  # [blocks or 1, choices, n]
    inner = gram[choices[..., :, None], choices[..., None, :]]
    inverse = np.linalg.inv(inner)
    wanted = _pick(layout.fold(open_), choices)  # [blocks, block, choices, n]
    values = np.einsum(
        "bcij,brcj->brci", np.broadcast_to(inverse, (layout.blocks, *inverse.shape[1:])), wanted
    )
    best = np.argmax((values * wanted).sum(axis=(1, 3)), axis=1)
    chosen = np.broadcast_to(choices, (layout.blocks, *choices.shape[1:]))[np.arange(layout.blocks), best]
    now = np.zeros((layout.blocks, layout.m), bool)
    np.put_along_axis(now, chosen, True, axis=1)
    changed = int((now != keep[:, columns]).any(axis=1).sum())
    new = np.zeros((layout.blocks, layout.block, layout.m))
    taken = values[np.arange(layout.blocks), :, best]
    np.put_along_axis(new, np.broadcast_to(chosen[:, None], taken.shape), taken, axis=2)
    new = new.reshape(-1, layout.m)[: layout.rows]
    gradient -= (new - weight[:, columns]) @ problem.gram[columns]
    weight[:, columns], keep[:, columns] = new, now
    return changed


def _pick(folded: np.ndarray, choices: np.ndarray) -> np.ndarray:
    if len(choices) == 1:
        return folded[:, :, choices[0]]
    return np.stack([rows[:, chosen] for rows, chosen in zip(folded, choices, strict=True)])


def _choices(keep: np.ndarray, layout: Layout) -> np.ndarray:
    """Columns `[1 or blocks, choices, n]` to choose from: all, or each block's own and its neighbours."""
    if math.comb(layout.m, layout.n) <= MAX_CHOICES:
        return np.array([list(itertools.combinations(range(layout.m), layout.n))])
    found = []
    for row in keep:
        kept, gone = np.flatnonzero(row), np.flatnonzero(~row)
        swaps = [[*np.delete(kept, i), new] for i in range(len(kept)) for new in gone]
        found.append([list(kept), *swaps])
    return np.array(found)
