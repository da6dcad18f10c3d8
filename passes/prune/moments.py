"""What calibration tells about a layer, in sums over its rows, and the least-squares problem that they pose.

A layer makes `y = W x + b`. Given inputs `x` of the model as it is pruned so far and outputs `y` that the
dense model has in their place, the best weight minimises

    sum ||W x + b - y||^2 + ridge * ||W - W_dense||^2

which needs only the sums below, whatever the number of rows. With `b` free the sums are taken about the means
(the best bias is `mean y - W mean x`). Completing the square, with `G = sum x x^T + ridge * I`:

    = tr (W - T) G (W - T)^T + rest,   T = (sum y x^T + ridge * W_dense) G^-1

so all that a method has to know is the target `T` and the matrix `G` ("Hessian" in the literature).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


@dataclass
class Moments:
    """float64 sums over rows: `x` `[K]`, `xx` `[K, K]`, `y` and `yy` (of squares) `[N]`, `yx` `[N, K]`."""

    count: float
    x: np.ndarray
    xx: np.ndarray
    y: np.ndarray
    yy: np.ndarray
    yx: np.ndarray

    @classmethod
    def empty(cls, inputs: int, outputs: int) -> Moments:
        return cls(0.0, *map(np.zeros, (inputs, (inputs, inputs), outputs, outputs, (outputs, inputs))))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """One batch: `x` `[rows, K]`, `y` `[rows, N]`."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.count += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.xx += x.T @ x
        self.yx += y.T @ x
        self.yy += np.square(y).sum(axis=0)

    def merge(self, other: Moments) -> None:
        """Add what `other` has seen, for a weight that several layers read."""
        self.count += other.count
        for name in ("x", "xx", "y", "yy", "yx"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def part(self, outputs: slice) -> Moments:
        """Those of some of the outputs, sharing memory: layers that read the same input need one matrix."""
        return Moments(self.count, self.x, self.xx, self.y[outputs], self.yy[outputs], self.yx[outputs])


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise `tr (W - target) gram (W - target)^T` over sparse W `[N, K]`.

    `dense` is the weight to be pruned; `mean` and `variance` `[K]` are those of the inputs; `rest` is the
    error that remains at the target, and `scale` the sum of squares that errors are relative to.
    """

    dense: np.ndarray
    target: np.ndarray
    gram: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    rest: float = 0.0
    scale: float = 1.0

    def error(self, weight: np.ndarray) -> float:
        """The squared error of the outputs, relative to the outputs; below the ridge's share 0."""
        off = weight - self.target
        return max(float(np.sum((off @ self.gram) * off)) + self.rest, 0.0) / self.scale

    @cached_property
    def inverse(self) -> np.ndarray:
        """`gram^-1` `[K, K]`."""
        return np.linalg.inv(self.gram)

    def ordered(self, order: np.ndarray) -> Problem:
        """The same with the K columns in another order."""
        both = np.ix_(order, order)
        found = Problem(
            self.dense[:, order],
            self.target[:, order],
            self.gram[both],
            self.mean[order],
            self.variance[order],
            self.rest,
            self.scale,
        )
        return self._knowing(found, lambda inverse: inverse[both])

    def rows_ordered(self, order: np.ndarray) -> Problem:
        """The same with the N rows in another order."""
        found = replace(self, dense=self.dense[order], target=self.target[order])
        return self._knowing(found, lambda inverse: inverse)

    def _knowing(self, found: Problem, change: Callable[[np.ndarray], np.ndarray]) -> Problem:
        """`found` with an inverse that is known here already: it is most of the work for many columns."""
        if "inverse" in vars(self):
            vars(found)["inverse"] = change(self.inverse)
        return found


def pose(
    moments: Moments, dense: np.ndarray, *, free_bias: bool, bias: np.ndarray, damping: float | None = None
) -> Problem:
    """The problem for a layer with weight `dense` `[N, K]` and `bias` `[N]`.

    `damping` is the ridge as a share of the mean square input; an input that never varies needs it. What K
    weights learn from `count` rows is uncertain by about K / count, and so much is taken where it is None.
    """
    count = max(moments.count, 1.0)
    mean = moments.x / count
    variance = np.maximum(np.diag(moments.xx) / count - mean**2, 0.0)
    gram, cross = moments.xx, moments.yx
    all_squares = float(moments.yy.sum())
    y_square = all_squares - float(moments.y @ moments.y) / count
    if free_bias:
        gram = gram - count * np.outer(mean, mean)
        cross = cross - np.outer(moments.y, mean)
        square = y_square
    else:  # outputs without the fixed bias
        cross = cross - np.outer(bias, moments.x)
        square = all_squares - 2 * float(bias @ moments.y) + count * float(bias @ bias)
    if damping is None:
        damping = min(len(gram) / count, 1.0)
    ridge = damping * float(np.trace(gram)) / len(gram) or 1.0
    damped = gram + ridge * np.eye(len(gram))
    wanted = cross + ridge * dense
    target = np.linalg.solve(damped, wanted.T).T
    rest = square + ridge * float(np.square(dense).sum()) - float(np.sum(wanted * target))
    return Problem(dense, target, damped, mean, variance, rest, y_square or 1.0)
