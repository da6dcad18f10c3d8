"""Optimal brain surgeon on the layer's own Hessian `G` (Hassibi & Stork, 1992).

Removing column j from a row that is optimal on its support raises the error by `w_j^2 / P_jj`, with `P` the
inverse of G on the support, and the best answer of the others is `w -= w_j / P_jj * P_j`. Rows that share
their support share P, so for a block the rise is `sum_rows w_j^2 / P_jj` and one P serves all.

    sparsegpt   columns from left to right, each group decided when it is reached; only columns further right
                answer (Frantar & Alistarh, 2023). One triangle, `U = chol(G^-1)^T`, serves all rows.
    greedy      always the least rise of all columns that may still go, all columns answer (Frantar et al.,
                "Optimal Brain Compression", 2022, with the support shared by a block).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.moments import Problem

CHUNK = 128
"""Columns that sparsegpt decides on together where a group is longer, as in the paper."""

STEPS = 128
"""In how many steps `greedy` removes, at least: a wider layer loses several columns at once, of different
groups, which saves passes over P that do not fit into the cache."""


def sparsegpt(problem: Problem, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """`(weight [rows, K], keep [blocks, K])`."""
    weight = problem.target.copy()
    upper = np.linalg.cholesky(problem.inverse).T
    diagonal = np.diag(upper)
    keep = np.ones((layout.blocks, weight.shape[1]), bool)
    for panel in _panels(layout):
        first, last = panel[0][0], panel[-1][1]
        off = np.zeros((layout.rows, last - first))  # what the columns further right have to answer
        for start, stop, kept in panel:
            columns = slice(start, stop)
            rise = np.square(weight[:, columns] / diagonal[columns])
            part = Layout(layout.rows, np.arange(stop - start), 1, kept, stop - start, layout.block)
            keep[:, columns] = part.best(rise)
            stays = layout.spread(keep[:, columns])
            for at in range(start, stop):
                now = np.where(stays[:, at - start], 0.0, weight[:, at]) / diagonal[at]
                weight[:, at:stop] -= now[:, None] * upper[at, at:stop]
                off[:, at - first] = now
            weight[:, stop:last] -= off[:, start - first : stop - first] @ upper[columns, stop:last]
        weight[:, last:] -= off @ upper[first:last, last:]
    weight[~layout.spread(keep)] = 0.0
    return weight, keep


def _runs(layout: Layout) -> list[tuple[int, int, int]]:
    """`(start, stop, kept)` of the columns that are decided together; the kept ones add up to n a group."""
    parts = max(1, round(layout.m / CHUNK))
    edges = [layout.m * i // parts for i in range(parts + 1)]
    kept = [layout.n * i // parts for i in range(parts + 1)]
    return [
        (base + edges[i], base + edges[i + 1], kept[i + 1] - kept[i])
        for base in range(0, layout.grouped, layout.m)
        for i in range(parts)
    ]


def _panels(layout: Layout) -> Iterator[list[tuple[int, int, int]]]:
    """The runs, so many together that columns beyond them are written once for about `CHUNK` columns."""
    panel: list[tuple[int, int, int]] = []
    for run in _runs(layout):
        panel.append(run)
        if run[1] - panel[0][0] >= CHUNK:
            yield panel
            panel = []
    if panel:
        yield panel


def greedy(problem: Problem, layout: Layout, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """`(weight [rows, K], keep [blocks, K])`; exact one-by-one elimination where K is at most `steps`."""
    inverse = problem.inverse
    weight = problem.target.copy()
    keep = np.ones((layout.blocks, weight.shape[1]), bool)
    for index in range(layout.blocks):
        rows = layout.block_rows(index)
        weight[rows], keep[index] = _eliminate(weight[rows], inverse.copy(), layout, steps)
    return weight, keep


def _eliminate(
    weight: np.ndarray, inverse: np.ndarray, layout: Layout, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    columns = np.arange(weight.shape[1])  # that are left
    group = np.where(columns < layout.grouped, columns // layout.m, -1)
    to_go = layout.groups * (layout.m - layout.n)
    batch = -(-to_go // steps)
    spare = np.full(layout.groups, layout.m - layout.n)
    out, keep = np.zeros_like(weight), np.zeros(weight.shape[1], bool)
    while to_go:
        may_go = (group[columns] >= 0) & (spare[group[columns]] > 0)
        rise = np.where(may_go, np.square(weight).sum(axis=0) / np.diagonal(inverse), np.inf)
        gone = _least(rise, group[columns], min(batch, to_go), one_a_group=layout.groups > 1)
        spare -= np.bincount(group[columns[gone]], minlength=layout.groups)
        answer = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone])
        left = np.ones(len(columns), bool)
        left[gone] = False
        weight = (weight - weight[:, gone] @ answer)[:, left]
        inverse = (inverse - inverse[:, gone] @ answer)[np.ix_(left, left)]
        columns = columns[left]
        to_go -= len(gone)
    out[:, columns], keep[columns] = weight, True
    return out, keep


def _least(rise: np.ndarray, group: np.ndarray, count: int, one_a_group: bool) -> np.ndarray:
    """Up to `count` columns of least finite rise, at most one of each group."""
    order = np.argsort(rise, kind="stable")[: max(8 * count, 1)]
    order = order[np.isfinite(rise[order])]
    if one_a_group:
        order = order[np.sort(np.unique(group[order], return_index=True)[1])]
    return order[:count]
