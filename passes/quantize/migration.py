"""Move what is hard to quantise from activations into weights: `x' = (x - shift) / scale`, `W' = W * scale`.

One range for a whole tensor is bad where channels differ. Scales by channel even them out,

    scale_k = max|x_k|^a / max|W_k|^b

with (a, b) = (1, 0) as RepQuant (Li et al., 2024) and (a, 1 - a) as SmoothQuant (Xiao et al., 2023); weights
then carry what activations lose. A shift centres each channel (RepQuant, Outlier Suppression+); the bias
takes it. What is best differs from layer to layer, so several are tried on the layer's sampled inputs, and
the one with the least error of the *output* is taken, together with the range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sparsec.passes.quantize.grid import Grid, symmetric, unsigned
from sparsec.passes.quantize.ranges import RANGES, Histogram
from sparsec.passes.quantize.seen import Seen

POWERS = ((0.25, 0.0), (0.5, 0.0), (0.75, 0.0), (1.0, 0.0), (0.5, 0.5), (0.75, 0.25))
GAIN = 0.75
"""The error that a migration must leave at most, relative to the one without, to be worth its operations."""


@dataclass(frozen=True, eq=False)
class Migration:
    """`scale` and `shift` `[channels]`; `name` says which of the candidates it is."""

    scale: np.ndarray
    shift: np.ndarray
    name: str = "none"

    @classmethod
    def none(cls, channels: int) -> Migration:
        return cls(np.ones(channels), np.zeros(channels))

    @property
    def scales(self) -> bool:
        return bool(np.any(self.scale != 1))

    @property
    def shifts(self) -> bool:
        return bool(np.any(self.shift))

    def columns(self, vector: np.ndarray, like: np.ndarray) -> np.ndarray:
        """One number for each channel -> `[groups, 1, taps * in]`, as the columns of `like` have them."""
        groups, _, width = like.shape
        return np.tile(vector.reshape(groups, -1), width * groups // len(vector))[:, None, :]

    def rows(self, x: np.ndarray) -> np.ndarray:
        """`x'` of rows `[groups, rows, taps * in]`; without a shift zeros of padding may be among them."""
        return ((x - self.columns(self.shift, x)) / self.columns(self.scale, x)).astype(x.dtype)

    def weight(self, weight: np.ndarray) -> np.ndarray:
        """`W'` of `[groups, out, taps * in]`."""
        return weight * self.columns(self.scale, weight)


@dataclass(frozen=True, eq=False)
class Choice:
    """How an input is quantised. `error` is that of the output relative to its variance, weights rounded to
    the nearest; `plain` the same by the same range without migration."""

    migration: Migration
    grid: Grid
    method: str
    low: float
    high: float
    error: float
    plain: float


def choose(
    seen: Seen,
    weight: np.ndarray,
    ranges: Sequence[str],
    *,
    scalable: bool,
    shiftable: bool,
    free: bool,
    passed_on: bool = False,
) -> Choice:
    """The best range of the methods `ranges`, and migration, for all layers with weight `[groups, out, taps *
    in]` that read what was `seen`. `free`: it costs nothing at run time, so that any gain counts. Migrations
    are compared by the last of `ranges`, the most careful one. `passed_on`: sums read the input as it is
    quantised, too, so that its own error counts beside that of the output."""

    def best_range(migration: Migration, methods: Sequence[str]) -> Choice | None:
        return _best_range(seen, weight, migration, methods, passed_on)

    none = Migration.none(len(seen.low))
    trials = [none]
    if scalable:
        trials += candidates(seen, weight, shiftable)
    made = [choice for m in trials if (choice := best_range(m, ranges[-1:])) is not None]
    finalists = (none, min(made, key=lambda choice: choice.error).migration)
    plain, best = (best_range(migration, ranges) for migration in finalists)
    if best.error > plain.error * (1.0 if free else GAIN):
        best = plain
    return Choice(best.migration, best.grid, best.method, best.low, best.high, best.error, plain.error)


def candidates(seen: Seen, weight: np.ndarray, shiftable: bool) -> Iterator[Migration]:
    centre = (seen.low + seen.high) / 2
    for shift in (np.zeros_like(centre), centre) if shiftable else (np.zeros_like(centre),):
        largest = np.maximum(np.abs(seen.low - shift), np.abs(seen.high - shift)).astype(np.float64)
        groups, _, width = weight.shape
        own = len(largest) // groups
        against = np.abs(weight).reshape(groups, -1, width // own, own).max(axis=(1, 2)).reshape(-1)
        alive = (largest > 0) & (against > 0)
        for a, b in POWERS:
            scale = np.ones(len(largest))
            scale[alive] = largest[alive] ** a / against[alive] ** b
            scale[alive] /= np.exp(np.mean(np.log(scale[alive]))) if np.any(alive) else 1.0
            name = f"scale {a:g}:{b:g}" + (" and shift" if np.any(shift) else "")
            yield Migration(scale, shift.astype(np.float64), name)


def _best_range(
    seen: Seen, weight: np.ndarray, migration: Migration, ranges: Sequence[str], passed_on: bool
) -> Choice | None:
    """None where a shift leaves only zeros."""
    x = migration.rows(seen.rows)
    low = np.min((seen.low - migration.shift) / migration.scale)
    high = np.max((seen.high - migration.shift) / migration.scale)
    if not (low or high):
        return None
    histogram = Histogram.of(x, low, high)
    moved = migration.weight(weight)
    rounded = np.stack([symmetric(w).nearest(w) for w in moved]).astype(np.float32)
    wanted = np.matmul(x, np.moveaxis(moved, 1, 2).astype(np.float32))
    total = float(np.square(wanted - wanted.mean(axis=1, keepdims=True)).sum()) or 1.0
    made = []
    for method in ranges:
        low, high = RANGES[method](histogram)
        if not low < high:  # nearly all values are zero
            low, high = histogram.low, histogram.high
        grid = unsigned(low, high)
        near = grid.nearest(x)
        off = np.matmul(near, np.moveaxis(rounded, 1, 2)) - wanted
        off -= off.mean(axis=1, keepdims=True)  # the bias takes it back
        error = float(np.square(off).sum()) / total
        if passed_on:
            error += float(np.square(near - x).sum()) / (float(np.square(x - x.mean()).sum()) or 1.0)
        made.append(Choice(migration, grid, method, low, high, error, error))
    return min(made, key=lambda choice: choice.error)
