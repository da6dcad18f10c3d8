"""Alpha-entmax along any axis, 1 < alpha <= 2; its mathematics, which kernels of every target share.

    entmax(x)_i = v_i^p,   v_i = max(z_i - tau, 0),   z = (alpha - 1) (x - max x),   p = 1 / (alpha - 1)

with tau such that the row sums to one (Peters, Niculae and Martins, "Sparse Sequence-to-Sequence Models",
2019).  At tau = -1 the largest element alone gives one.  From there on kernels take Newton's steps for
||v||_p = 1: with M = sum v^p and S = sum v^(p-1), both over v > 0,

    tau <- tau + (M - M^(2 - alpha)) / S                                                              (*)

As the p-norm is convex and falls with tau, no step overshoots, and near the solution each doubles the digits.
Of 32000 normal numbers alpha 1.5 takes eight at most, where Newton's steps for M = 1 take twelve; Halley's
("AdaSplash: Adaptive Sparse Flash Attention", 2025) are as few, but want a third sum and a bracket.  For
alpha = 2 (*) is Michelot's iteration for sparsemax, and ends with the exact support.  A row that holds NaN or
+inf, or nothing but -inf, is NaN throughout.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx

from sparsec.schedules import rows, tir

#: Attributes of a definition; one without an alpha is sparsemax.
AXIS, ALPHA = "sparsec.axis", "sparsec.alpha"

_ZERO, _ONE = tir.f32(0.0), tir.f32(1.0)
#: Powers up to this are products; those of alpha = 1.5, 4/3, 1.25, 1.2, 1.1 and 1.05 are whole.
_MOST_FACTORS = 20
#: Halvings in the definition, of an interval no longer than 1.
_HALVINGS = 24


@dataclass(frozen=True)
class Powers:
    """The terms of (*) for one alpha; ``exp`` is what to take for e^x of x <= 0."""

    alpha: float
    exp: Callable = tirx.exp

    def __post_init__(self):
        if not 1 < self.alpha <= 2:
            raise ValueError(
                f"entmax: required an alpha above 1, at most 2, found {self.alpha}; "
                "at 1 it is softmax, above 2 float32 loses its digits"
            )

    @property
    def scale(self) -> float:
        return self.alpha - 1

    @property
    def slope(self) -> list[Callable]:
        """Functions that make v^(p-1) of v > 0, one after the other."""
        return _power(1 / self.scale - 1, self.exp)

    @property
    def damped(self) -> list[Callable]:
        """Those that make M^(2 - alpha) of M."""
        return _power(2 - self.alpha)


def last_step(alpha: float, extent: int) -> float:
    """A step of (*) up to this is the last one of a row of ``extent`` elements.

    Of each, a step d leaves d^min(p, 2) of mass too much at most, and of all 2^-21.  Smaller ones than the
    least that moves a tau of any size are not waited for.
    """
    return max(2.0**-22, (2.0**-21 / max(extent, 1)) ** max(alpha - 1, 0.5))


def _power(exponent: float, exp: Callable = tirx.exp) -> list[Callable]:
    """Functions that make x^exponent of x > 0, apart, as polynomials in polynomials take long to build."""
    whole, half = divmod(round(2 * exponent), 2)
    if whole > _MOST_FACTORS or abs(whole + half / 2 - exponent) > 2e-6 * exponent:
        return [tirx.log, lambda x: exp(x * tir.f32(exponent))]
    if half:
        return [lambda x: _product(x, whole) * tirx.sqrt(x)] if whole else [tirx.sqrt]
    return [lambda x: _product(x, whole)]


def _product(x: tir.Expr, count: int) -> tir.Expr:
    """x^count, in halves, which LLVM finds to be equal."""
    if count < 2:
        return x if count else _ONE
    return _product(x, count // 2) * _product(x, count - count // 2)


def positive(v: tir.Expr, value: tir.Expr) -> tir.Expr:
    """``value`` where v > 0, else 0; ``value`` as well where v is NaN."""
    return tirx.Select(v <= _ZERO, _ZERO, value)


def term(functions: list[Callable], v: tir.Expr) -> tir.Expr:
    """What they make of v where v > 0, else 0."""
    return positive(v, functools.reduce(lambda value, function: function(value), functions, v))


def entmax(shape: tuple[int, ...], alpha: float, axis: int = -1) -> tirx.PrimFunc:
    """The unscheduled definition ``(X, Y)``, both float32 of ``shape``."""
    axis = rows.normal_axis("entmax", axis, len(shape))
    x = te.placeholder(shape, "float32", "X")
    return rows.definition("entmax", [x, stages(x, shape, axis, alpha)], {AXIS: axis, ALPHA: alpha})


def stages(x: te.Tensor, shape: tuple[int, ...], axis: int, alpha: float) -> te.Tensor:
    """Entmax of ``x`` along ``axis``, counted from the front: halves the interval of tau, then (*) once."""
    scale, extent = Powers(alpha).scale, shape[axis]
    share = 1 / scale
    without = shape[:axis] + shape[axis + 1 :]

    def put(i, k):
        return (*i[:axis], k, *i[axis:])

    def drop(i):
        return (*i[:axis], *i[axis + 1 :])

    def fold(join, name, value):
        k = te.reduce_axis((0, extent), f"k_{name}")
        return te.compute(without, lambda *i: join(value(i, k), axis=[k]), name)

    top = fold(te.max, "top", lambda i, k: x[put(i, k)])
    z = te.compute(shape, lambda *i: (x[i] - top[drop(i)]) * tir.f32(scale), "z")

    def power(v, exponent):
        raised = v
        while exponent >= 3:  # which TVM warns of
            raised, exponent = tirx.pow(raised, tir.f32(2.0)), exponent / 2
        return positive(v, tirx.pow(raised, tir.f32(exponent)))

    def total(name, exponent, tau):
        return fold(te.sum, name, lambda i, k: power(z[put(i, k)] - tau(i), exponent))

    def upper_half(n, low, width):
        """``low`` itself, or ``width`` above it where that is not too much."""

        def middle(i):
            return low(i) + tir.f32(width)

        mass = total(f"mass{n}", share, middle)
        made = te.compute(without, lambda *i: tirx.Select(mass[i] >= _ONE, middle(i), low(i)), f"low{n}")
        return lambda i: made[i]

    low, width = lambda i: tir.f32(-1.0), 1 - float(max(extent, 1)) ** -scale
    for n in range(_HALVINGS):
        low = upper_half(n, low, width / 2 ** (n + 1))
    mass, slopes = total("mass", share, low), total("slopes", share - 1, low)

    def stepped(*i):
        return low(i) + (mass[i] - power(mass[i], 2 - alpha)) / slopes[i]

    tau = te.compute(without, stepped, "tau")
    return te.compute(shape, lambda *i: power(z[i] - tau[drop(i)], share), "Y")
