"""Odd functions that saturate, as one polynomial per interval: erf and tanh by permuting coefficients.

    f(x) = x g(|x|),   g(a) = sum_j c[k, j] (a - k h)^j,   k = round(a / h),   a <= limit

``g`` is even and smooth, so the intervals share one degree, and the result is exact to rounding near zero,
too.  A column ``c[:, j]`` fills one vector register; the permute instruction of AVX2 (8 lanes) and AVX-512
(16) looks up the coefficients of all lanes at once.  No exponential and no division, and a third of the
instructions of those.  At ``limit`` the value rounds to 1, and nowhere above; the error is at most 2.4 units
in the last place.

Coefficients are the interpolation of ``g`` on the Chebyshev nodes of each interval, in float64, rounded.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.polynomials import ROUND, bits, let, magnitude, splat, with_sign

_PERMUTE = {8: "llvm.x86.avx2.permps", 16: "llvm.x86.avx512.permvar.sf.512"}


@dataclass(frozen=True)
class Table:
    """``function`` and the slope at zero of what it divides by x; one interval per lane, ``step`` wide."""

    function: Callable[[float], float]
    slope: float
    lanes: int
    step: float
    degree: int
    limit: float

    @functools.cached_property
    def coefficients(self) -> np.ndarray:
        """float32 ``[lanes, degree + 1]``, lowest power first."""
        nodes = np.cos(np.pi * (np.arange(self.degree + 1) + 0.5) / (self.degree + 1)) * self.step / 2
        powers = np.vander(nodes, increasing=True)
        rows = [[self._quotient(k * self.step + t) for t in nodes] for k in range(self.lanes)]
        return np.linalg.solve(powers, np.array(rows).T).T.astype(np.float32)

    def _quotient(self, a: float) -> float:
        return self.function(a) / a if a else self.slope


_ERF = (math.erf, 2 / math.sqrt(math.pi))
_TANH = (math.tanh, 1.0)

#: Function, level, table.  Steps have few bits, and the last interval ends above the limit.
TABLES = (
    ("erf", "v3", Table(*_ERF, lanes=8, step=0.5390625, degree=7, limit=3.99)),
    ("erf", "v4", Table(*_ERF, lanes=16, step=0.265625, degree=5, limit=3.99)),
    ("tanh", "v3", Table(*_TANH, lanes=8, step=1.203125, degree=10, limit=9.02)),
    ("tanh", "v4", Table(*_TANH, lanes=16, step=0.59375, degree=6, limit=9.1)),
)


def odd(x, table: Table):
    """The function of ``table`` for the float32 vector ``x`` of ``table.lanes`` lanes."""
    limit = splat(x, table.limit)

    def value(a):
        return let(a * splat(x, 1 / table.step) + splat(x, ROUND), lambda t: interval(a, t))

    def interval(a, t):
        def polynomial(r):
            result = column(table.degree, t)
            for power in range(table.degree - 1, -1, -1):
                result = result * r + column(power, t)
            return with_sign(a * result, x)

        return let(a - (t - splat(x, ROUND)) * splat(x, table.step), polynomial, "r")

    def column(power: int, t):
        values = [tirx.FloatImm("float32", float(c)) for c in table.coefficients[:, power]]
        whole = tirx.Shuffle(values, [tir.i32(lane) for lane in range(table.lanes)])
        # The instruction looks at the low bits of an index only, and those hold the number of the interval.
        return tir.llvm_intrinsic(_PERMUTE[table.lanes], x.ty, whole, bits(t))

    return let(magnitude(x), lambda a: let(tirx.Select(a > limit, limit, a), value, "a"), "a")
