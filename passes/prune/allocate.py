"""Which pattern each layer gets: a multiple-choice knapsack over cost and error.

Every layer has options, each with a cost (seconds or bytes) and an error; costs and errors of layers add up.
`frontier` finds, for every cost on a fine grid, the least error that it buys: dynamic programming over
layers, `best[c] = min over options (best_before[c - cost] + error)`, exact but for costs rounded up to the
grid.
That errors of layers add up is the linearity of HIGGS (Malinovskii et al., 2024): the loss of a network grows
by `sum_l a_l t_l^2`, `t_l` the relative error of layer l, for errors that are not large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Steps of the grid for each layer: rounding costs up then wastes a thousandth of what lies between the ends.
STEPS = 1000


@dataclass(frozen=True)
class Option:
    """One way to store a layer; `name` is its pattern, "dense" for none."""

    name: str
    cost: float
    error: float


@dataclass(frozen=True)
class Point:
    """A choice for every layer, by index of its option, with the sums of its costs and errors."""

    picks: tuple[int, ...]
    cost: float
    error: float


def frontier(layers: Sequence[Sequence[Option]]) -> list[Point]:
    """The points that no other beats in both cost and error, the costliest first.

    Raises ValueError where a layer has no option.
    """
    if not all(layers):
        raise ValueError("frontier: every layer needs an option")
    # The cheapest option of a layer is its floor; what the grid counts is what an option costs above it.
    floors = [min(option.cost for option in options) for options in layers]
    span = sum(max(o.cost for o in options) - floor for options, floor in zip(layers, floors, strict=True))
    step = span / (STEPS * len(layers)) if span > 0 else 1.0
    size = (STEPS + 1) * len(layers)  # each cost may be rounded up: the costliest choice, too, is on the grid
    best = np.zeros(size + 1)
    taken = []
    for options, floor in zip(layers, floors, strict=True):
        steps = [min(size, int(np.ceil((option.cost - floor) / step - 1e-9))) for option in options]
        sums = np.full((len(options), size + 1), np.inf)
        for row, option, used in zip(sums, options, steps, strict=True):
            row[used:] = best[: size + 1 - used] + option.error
        pick = sums.argmin(axis=0)
        best = np.take_along_axis(sums, pick[None], 0)[0]
        taken.append((pick, steps))
    points = []
    for at in range(size + 1):
        if at and best[at] >= best[at - 1]:
            continue
        picks, left = [], at
        for pick, steps in reversed(taken):
            picks.append(int(pick[left]))
            left -= steps[picks[-1]]
        points.append(point(layers, picks[::-1]))
    return _undominated(points)


def point(layers: Sequence[Sequence[Option]], picks: Sequence[int]) -> Point:
    """The choice `picks` with its sums."""
    chosen = [options[i] for options, i in zip(layers, picks, strict=True)]
    return Point(tuple(picks), sum(o.cost for o in chosen), sum(o.error for o in chosen))


def _undominated(points: Sequence[Point]) -> list[Point]:
    kept: list[Point] = []
    for candidate in sorted(points, key=lambda p: (p.cost, p.error)):
        if not kept or candidate.error < kept[-1].error:
            kept.append(candidate)
    return kept[::-1]


def knee(points: Sequence[Point]) -> Point:
    """The point after which error grows fastest: farthest below the line from one end to the other.

    Both axes are scaled to the frontier's own span ("essential sparsity" ends here).
    """
    first, last = points[0], points[-1]
    cost, error = first.cost - last.cost or 1.0, last.error - first.error or 1.0
    return max(points, key=lambda p: (first.cost - p.cost) / cost - (p.error - first.error) / error)
