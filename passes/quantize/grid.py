"""Grids of numbers: what an 8-bit tensor stands for, `scale * (q - zero)`, with q from `low` to `high`.

Activations are uint8 with one scale and one zero point for the tensor, weights int8 with a scale for each
output channel (or, of a few bits alone, for each group of `groups`) and zero point 0. Both are those of
ONNX's QuantizeLinear, half to even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHRINKS = np.linspace(1.0, 0.7, 16)
"""By how much of its largest weight a row's scale is tried, for `fitted`."""


@dataclass(frozen=True, eq=False)
class Grid:
    """`scale` float32, a scalar, `[rows, 1]` or `[rows, K]`; `zero`, `low` and `high` integers."""

    scale: np.ndarray
    zero: int
    low: int
    high: int

    def quantise(self, x: np.ndarray) -> np.ndarray:
        """The nearest q, in the dtype of `x`."""
        return np.clip(np.rint(x / self.scale) + self.zero, self.low, self.high)

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """What the nearest q stands for."""
        return (self.quantise(x) - self.zero) * self.scale


def unsigned(low: float, high: float) -> Grid:
    """The uint8 grid over `[low, high]`, widened so that 0 is in it and is a number of the grid.

    An empty range (both 0) has no scale: ValueError.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    if not scale > 0 or not np.isfinite(scale):
        raise ValueError(f"no 8-bit grid covers [{low:g}, {high:g}]")
    return Grid(scale, int(np.clip(np.rint(-low / scale), 0, 255)), 0, 255)


def symmetric(weight: np.ndarray, shrink: float | np.ndarray = 1.0) -> Grid:
    """The int8 grid of `weight` `[rows, K]` up to `shrink` of a row's largest; a row of zeros takes the
    widest scale of the others, which suits its bias."""
    largest = np.abs(weight).max(axis=1, keepdims=True) * shrink
    scale = np.where(largest > 0, largest, largest.max() or 127.0).astype(np.float32) / np.float32(127)
    return Grid(np.maximum(scale, np.finfo(np.float32).tiny), 0, -127, 127)


def fitted(weight: np.ndarray, importance: np.ndarray) -> Grid:
    """The `symmetric` grid whose shrink has, row by row, the least `sum_k importance[k] * error[k]^2`."""
    best, shrink = np.full(len(weight), np.inf), np.ones((len(weight), 1))
    for tried in SHRINKS:
        off = symmetric(weight, tried).nearest(weight) - weight
        error = np.square(off) @ importance
        shrink[error < best] = tried
        best = np.minimum(error, best)
    return symmetric(weight, shrink)
