"""Which range of an activation its 8 bits should cover: four methods, all on a histogram that was sampled.

    minmax       everything that was seen
    percentile   all but a share of 1e-4 of the values, half of it at each end
    entropy      least Kullback-Leibler divergence between the values clipped and the values quantised
                 (Migacz, "8-bit inference with TensorRT", 2017)
    mse          least mean square of what rounding and clipping change

Every range holds 0, which padding and Relu need to be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BINS = 2048
OUTSIDE = 1e-4
"""The share of the values that `percentile` clips."""
LEVELS = 256
STEPS = 64
"""Windows that `entropy` and `mse` try on a way from all to a twentieth of the range."""
LEAST = 0.05
TURNS = 2
EMPTY = 1e-4


@dataclass(frozen=True, eq=False)
class Histogram:
    """`counts` `[BINS]` of equal bins from `low` to `high`, the least and the largest value ever seen."""

    low: float
    high: float
    counts: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, low: float, high: float) -> Histogram:
        """`values`, perhaps a sample of those whose extremes are `low` and `high`; the range takes 0 in."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        counts, _ = np.histogram(values, BINS, (low, high) if high > low else (low, low + 1.0))
        return cls(low, high, counts.astype(np.float64))

    @property
    def centres(self) -> np.ndarray:
        return self.low + (np.arange(BINS) + 0.5) * ((self.high - self.low) / BINS)


def minmax(histogram: Histogram) -> tuple[float, float]:
    return histogram.low, histogram.high


def percentile(histogram: Histogram, outside: float = OUTSIDE) -> tuple[float, float]:
    """The edges of the bins in which `outside / 2` and `1 - outside / 2` of the values are reached."""
    share = np.concatenate([[0.0], np.cumsum(histogram.counts)]) / max(histogram.counts.sum(), 1.0)
    width = (histogram.high - histogram.low) / BINS
    first = int(np.searchsorted(share, outside / 2, side="right")) - 1
    last = int(np.searchsorted(share, 1 - outside / 2, side="left"))
    return min(histogram.low + first * width, 0.0), max(histogram.low + last * width, 0.0)


def entropy(histogram: Histogram) -> tuple[float, float]:
    """Both ends come in at the same pace; windows of `LEVELS` bins and more are tried. The bin of 0, which is
    exact on every grid, does not count: behind a Relu it would hide all others."""
    nothing = int(np.clip(-histogram.low / ((histogram.high - histogram.low) or 1.0) * BINS, 0, BINS))
    counts = histogram.counts.copy()
    counts[min(nothing, BINS - 1)] = 0.0
    windows = {
        (nothing - round(nothing * part), nothing + round((BINS - nothing) * part))
        for part in np.linspace(1.0, LEAST, STEPS)
    }
    windows = [w for w in sorted(windows) if w[1] - w[0] >= LEVELS]
    first, last = min(windows, key=lambda w: divergence(counts, *w), default=(0, BINS))
    width = (histogram.high - histogram.low) / BINS
    return histogram.low + first * width, histogram.low + last * width


def divergence(counts: np.ndarray, first: int, last: int) -> float:
    """KL(P || Q): P the window `[first, last)` with what is clipped in its end bins, Q the window in `LEVELS`
    levels, each spread evenly over its bins that are not empty; where Q has nothing, `EMPTY` of all."""
    inside = counts[first:last]
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    level = np.arange(len(inside)) * LEVELS // len(inside)
    filled = (inside > 0).astype(np.float64)
    total, bins = (np.bincount(level, weights, LEVELS) for weights in (inside, filled))
    q = np.where(filled > 0, total[level] / np.maximum(bins[level], 1.0), 0.0)
    if not q.sum():
        return np.inf
    q = np.where(q > 0, q, EMPTY * q.sum())[p > 0]
    p = p[p > 0] / p.sum()
    q /= q.sum()
    return float(np.sum(p * np.log(p / q)))


def mse(histogram: Histogram) -> tuple[float, float]:
    """Both ends come in at the same pace first, from the best place then each by itself, by turns."""
    if not histogram.high > histogram.low:
        return histogram.low, histogram.high
    filled = histogram.counts > 0
    x, weight = histogram.centres[filled], histogram.counts[filled]
    parts = np.linspace(1.0, LEAST, STEPS)
    lows, highs = histogram.low * parts, histogram.high * parts

    def best(windows) -> tuple[float, float]:
        low, high = min(windows, key=lambda window: _square_error(x, weight, *window))
        return float(low), float(high)

    low, high = best(zip(lows, highs, strict=True))
    for _ in range(TURNS):
        low, high = best((low, other) for other in (high, *highs) if other > low)
        low, high = best((other, high) for other in (low, *lows) if other < high)
    return low, high


def _square_error(x: np.ndarray, weight: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / (LEVELS - 1)
    zero = np.rint(-low / scale)
    off = (np.clip(np.rint(x / scale), -zero, LEVELS - 1 - zero)) * scale - x
    return float(np.square(off) @ weight)


# From the plainest on; a histogram -> (low, high), 0 in between.
RANGES: dict[str, Callable[[Histogram], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
