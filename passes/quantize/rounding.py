"""From real weights to integers, for the least error of the layer's *output*, `tr (W - T) G (W - T)^T`.

    nearest   each weight by itself
    gpfq      column after column; each takes back what those before have changed (Lybrand & Saab, "A greedy
              algorithm for quantizing neural networks", 2021), here on the Gram matrix of the inputs:
              q_t = Q(T_t + sum_{s<t} (T_s - q_s) G_st / G_tt). Set to zero below a threshold it promotes
              zeros (Zhang & Saab, "Post-training quantization with provable guarantees", 2023)
    obs       column after column; those behind answer each rounding (Frantar et al., "GPTQ", 2023), those
              with the largest inputs first
    descent   from `obs` on, every weight to its best integer with all others as they are, over and over: what
              AdaRound looks for by a relaxation (Nagel et al., 2020), and any integer, not the nearest two

A weight whose place is not in `support` is and stays 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sparsec.passes.prune.moments import Problem
from sparsec.passes.quantize.grid import Grid

CHUNK = 64
"""Columns between two updates of all others, so that most work is in matrix products."""
SWEEPS = 2
FEW = 1e-3
"""Share of the weights that a sweep must move for there to be another one."""
SUPPORTS = 64
"""Different supports up to which each is rounded by itself."""
ROWS = 4096
"""Rows that are rounded at a time: of a vocabulary's, all would take memory many times over."""

Round = Callable[[Problem, Grid, np.ndarray], np.ndarray]


def nearest(problem: Problem, grid: Grid, support: np.ndarray) -> np.ndarray:
    return np.where(support, grid.quantise(problem.target), 0.0)


def gpfq(
    problem: Problem, grid: Grid, support: np.ndarray, threshold: float = 0.0, soft: bool = False
) -> np.ndarray:
    """With a `threshold` (in steps of the grid) what is smaller becomes 0, and with `soft` all else that much
    smaller."""
    gram, target, stays, scale = problem.gram, problem.target.T, support.T, _steps(problem, grid)
    quantised = np.zeros(target.shape)
    owed = np.zeros(target.shape)  # sum_{s<t} (T_s - q_s) G_st
    for start, stop in _chunks(gram):
        left = np.zeros((stop - start, scale.shape[1]))
        for at in range(start, stop):
            value = target[at] + owed[at] / gram[at, at]
            smaller = np.sign(value) * np.maximum(np.abs(value) - threshold * scale[at], 0.0)
            value = smaller if soft else np.where(smaller == 0, 0.0, value)
            quantised[at] = _round(value, grid, scale[at], stays[at])
            left[at - start] = target[at] - quantised[at] * scale[at]
            owed[at + 1 : stop] += gram[at + 1 : stop, at, None] * left[at - start]
        owed[stop:] += gram[stop:, start:stop] @ left
    return np.ascontiguousarray(quantised.T)


def obs(problem: Problem, grid: Grid, support: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.diag(problem.gram), kind="stable")
    gram = problem.gram[np.ix_(order, order)]
    weight, stays, scale = problem.target.T[order], support.T[order], _steps(problem, grid)[order]
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    quantised = np.zeros(weight.shape)
    for start, stop in _chunks(gram):
        answer = np.zeros((stop - start, scale.shape[1]))
        for at in range(start, stop):
            quantised[at] = _round(weight[at], grid, scale[at], stays[at])
            answer[at - start] = (weight[at] - quantised[at] * scale[at]) / upper[at, at]
            weight[at + 1 : stop] -= upper[at, at + 1 : stop, None] * answer[at - start]
        weight[stop:] -= upper[start:stop, stop:].T @ answer
    restored = np.empty(problem.target.shape)
    restored[:, order] = quantised.T
    return restored


def descent(problem: Problem, grid: Grid, support: np.ndarray) -> np.ndarray:
    gram, stays, scale = problem.gram, support.T, _steps(problem, grid)
    quantised = np.ascontiguousarray(obs(problem, grid, support).T)
    slope = gram @ (quantised * scale - problem.target.T)
    for _ in range(SWEEPS):
        moved = 0
        for start, stop in _chunks(gram):
            steps = np.zeros((stop - start, scale.shape[1]))
            local = gram[start:stop, start:stop]
            for at in range(start, stop):
                old = quantised[at].copy()
                quantised[at] = _round(old * scale[at] - slope[at] / gram[at, at], grid, scale[at], stays[at])
                steps[at - start] = (quantised[at] - old) * scale[at]
                slope[start:stop] += local[:, at - start, None] * steps[at - start]
            if changes := np.count_nonzero(steps):
                moved += changes
                slope[:start] += gram[:start, start:stop] @ steps
                slope[stop:] += gram[stop:, start:stop] @ steps
        if moved <= FEW * slope.size:
            break
    return np.ascontiguousarray(quantised.T)


def _round(value: np.ndarray, grid: Grid, scale: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """The integers of one column, `[rows]`."""
    return np.where(stays, np.clip(np.rint(value / scale), grid.low, grid.high), 0.0)


def _steps(problem: Problem, grid: Grid) -> np.ndarray:
    """float64 `[K, rows]`: the work is on the transpose, in which a column's weights lie side by side."""
    return np.ascontiguousarray(np.broadcast_to(grid.scale, problem.target.shape).T, dtype=np.float64)


def on_support(
    problem: Problem, start: np.ndarray, grid: Grid, support: np.ndarray, round_: Round
) -> np.ndarray:
    """The integers of `start`, which is of least error on `support`, by `round_`.

    About `start` the error is a quadratic form in the weights that stay, so rows with the same support are a
    smaller problem of their own, in which no error is passed on to weights that are gone.
    """
    kinds, which = np.unique(np.packbits(support, axis=1), axis=0, return_inverse=True)
    if len(kinds) > SUPPORTS:
        return round_(problem, grid, support)
    quantised, scale = np.zeros_like(start), np.broadcast_to(grid.scale, start.shape)
    same = (np.flatnonzero(which.ravel() == kind) for kind in range(len(kinds)))
    for rows in (part[first : first + ROWS] for part in same for first in range(0, len(part), ROWS)):
        stays = np.flatnonzero(support[rows[0]])
        at = np.ix_(rows, stays)
        part = replace(problem, target=start[at], gram=problem.gram[np.ix_(stays, stays)])
        steps = replace(grid, scale=scale[at])
        quantised[at] = round_(part, steps, np.ones((len(rows), len(stays)), bool))
    return quantised


def _chunks(gram: np.ndarray) -> list[tuple[int, int]]:
    return [(start, min(start + CHUNK, len(gram))) for start in range(0, len(gram), CHUNK)]


# From the plainest on: (problem, grid, support bool [rows, K]) -> integers [rows, K] as float64.
ROUNDINGS: dict[str, Round] = {"nearest": nearest, "gpfq": gpfq, "obs": obs, "descent": descent}
