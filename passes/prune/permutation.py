"""Search for the order of channels that loses least to a pattern, at the layers on both their sides.

The layers that *make* the channels have them as rows: rows of one block share what they keep, so rows that
want the same belong together. `cluster` makes a start; what row r loses with the support of block b is known
exactly (`row_costs`). The layers that *read* them have them as columns: of each m the n best stay, so columns
that matter should not meet. A `score` `[B, C]` says what column c is worth to block b: by how much the error
rises where it alone is dropped and all others answer (`column_scores`).

Groups of m places are paired at random, again and again, and every pair makes the one exchange that gains
most on both sides together, if there is one: no step loses (after Pool & Yu, "Channel permutations for N:M
sparsity", 2021, with the error of the output in the place of magnitude).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.moments import Problem

ROUNDS = 400
PATIENCE = 20
"""Rounds in which next to nothing was gained, after which the search ends."""

MAX_BLOCKS = 64
"""Of a score with more blocks, so many are looked at: what columns are worth is told well by a sample."""

SEED = 0


@dataclass(frozen=True, eq=False)
class Maker:
    """`cost` `[C, blocks]`: what each channel loses in each block of `block` places."""

    cost: np.ndarray
    block: int


@dataclass(frozen=True, eq=False)
class Reader:
    """`score` `[B, C]`: what each channel is worth to each block; of every m places n are kept."""

    score: np.ndarray
    n: int
    m: int


def row_costs(problem: Problem, keep: np.ndarray) -> np.ndarray:
    """`[rows, blocks]`: the error of each row, with its best values, on the support `keep` `[blocks, K]`.

    With P what is dropped it is `T_P (G^-1)_PP^-1 T_P^T`, relative to the error's scale.
    """
    inverse = problem.inverse
    cost = np.empty((len(problem.target), len(keep)))
    for block, kept in enumerate(keep):
        gone = np.flatnonzero(~kept)
        lower = np.linalg.inv(np.linalg.cholesky(inverse[np.ix_(gone, gone)]))
        cost[:, block] = np.square(problem.target[:, gone] @ lower.T).sum(axis=1)
    return cost / problem.scale


def row_scores(problem: Problem) -> np.ndarray:
    """`[rows, K]`: by how much the error rises when a row loses a column alone (see `obs`)."""
    return np.square(problem.target) / np.diag(problem.inverse) / problem.scale


def column_scores(problem: Problem, block: int, taps: int = 1) -> np.ndarray:
    """`[blocks * taps, inputs]`: the rises of each block of rows."""
    rise = row_scores(problem)
    by_block = np.add.reduceat(rise, np.arange(0, len(rise), block), axis=0)
    return by_block.reshape(len(by_block) * taps, -1)


def cluster(rise: np.ndarray, layout: Layout, run: int) -> np.ndarray:
    """An order of the rows of `rise` `[C, K]` to start from: blocks that grow from one row each.

    The row that would lose most comes first; what it keeps is chosen by the rows that it has, and it is
    joined, as many at a time as it has, by those that lose the least share of their own with that.
    """
    one = Layout(1, layout.order, layout.groups, layout.n, layout.m, 1)
    order: list[int] = []
    for start in range(0, len(rise), run):
        left = np.arange(start, start + run)
        left = left[np.argsort(-rise[left].sum(axis=1), kind="stable")]
        while len(left):
            block, left = left[:1], left[1:]
            while len(block) < layout.block and len(left):
                gone = ~one.best(rise[block].sum(axis=0, keepdims=True))[0]
                lost = rise[left] @ gone / np.maximum(rise[left].sum(axis=1), 1e-300)
                nearest = np.argsort(lost, kind="stable")[: min(len(block), layout.block - len(block))]
                block, left = np.append(block, left[nearest]), np.delete(left, nearest)
            order.extend(block)
    return np.array(order)


def search(
    order: np.ndarray, run: int, makers: Sequence[Maker], reader: Reader | None, rounds: int = ROUNDS
) -> np.ndarray:
    """A better order than `order` `[C]` (place -> channel), every run of `run` places keeping its channels.

    Places in no full group of their run keep what they have.
    """
    order, size = order.copy(), len(order)
    if reader is None:
        n, m, score = 0, min(4, max(run // 2, 1)), np.zeros((1, size))
    else:
        n, m, score = reader.n, reader.m, reader.score
    rng = np.random.default_rng(SEED)
    if len(score) > MAX_BLOCKS:
        score = score[rng.choice(len(score), MAX_BLOCKS, replace=False)] * (len(score) / MAX_BLOCKS)
    groups = np.stack([start + np.arange(run // m * m).reshape(-1, m) for start in range(0, size, run)])
    half, every = groups.shape[1] // 2, np.arange(len(groups))[:, None]
    quiet = 0
    for _ in range(rounds if half else 0):
        mixed = rng.permuted(np.tile(np.arange(groups.shape[1]), (len(groups), 1)), axis=1)
        one = groups[every, mixed[:, :half]].reshape(-1, m)
        two = groups[every, mixed[:, half : 2 * half]].reshape(-1, m)
        gain = _by_columns(score[:, order[one]], score[:, order[two]], n) if n else 0.0
        for maker in makers:
            gain = gain + _by_rows(maker, order, one, two)
        quiet = 0 if _exchange(order, one, two, gain) else quiet + 1
        if quiet == PATIENCE:
            break
    return order


def _exchange(order: np.ndarray, one: np.ndarray, two: np.ndarray, gain: np.ndarray) -> bool:
    """Exchange in each pair of groups the two channels that gain most; whether that was worth the round."""
    flat = gain.reshape(len(one), -1)
    best = flat.argmax(axis=1)
    gained = flat[np.arange(len(one)), best]
    pairs = np.flatnonzero(gained > 0)
    i, j = np.unravel_index(best[pairs], gain.shape[1:])
    a, b = one[pairs, i], two[pairs, j]
    order[a], order[b] = order[b], order[a]
    return float(gained[pairs].sum()) > 1e-5


def _by_rows(maker: Maker, order: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """`[pairs, m, m]`: what the maker gains when place i of `one` and j of `two` exchange their channels."""
    here, there = one // maker.block, two // maker.block
    first, second = order[one], order[two]
    stay = maker.cost[first, here][:, :, None] + maker.cost[second, there][:, None, :]
    cross = maker.cost[first[:, :, None], there[:, None, :]]
    return stay - cross - maker.cost[second[:, None, :], here[:, :, None]]


def _by_columns(first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """`[pairs, m, m]`: what is kept more when column i of `first` `[B, pairs, m]` and j of `second` exchange
    their groups: the n - 1 best of the others stay, and the better of the new one and the n-th of them."""
    rest_1, next_1, now_1 = _without_each(first, n)
    rest_2, next_2, now_2 = _without_each(second, n)
    after = rest_1.sum(axis=0)[:, :, None] + rest_2.sum(axis=0)[:, None, :]
    for i in range(first.shape[-1]):
        after[:, i] += np.maximum(second, next_1[..., i, None]).sum(axis=0)
        after[:, :, i] += np.maximum(first, next_2[..., i, None]).sum(axis=0)
    return after - (now_1 + now_2).sum(axis=0)[:, None, None]


def _without_each(groups: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of groups `[B, pairs, m]`, when column i is taken out: the sum of the n - 1 largest that are left and
    the n-th largest, `[B, pairs, m]` both; and the sum of the n largest with all in, `[B, pairs]`."""
    rank = np.argsort(np.argsort(-groups, axis=-1, kind="stable"), axis=-1)
    down = -np.sort(-groups, axis=-1)
    most = down[..., :n].sum(axis=-1)
    among = rank < n
    rest = np.where(among, most[..., None] - groups, (most - down[..., n - 1])[..., None])
    following = np.where(among, down[..., n, None], down[..., n - 1, None])
    return rest, following, most
