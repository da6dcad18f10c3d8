"""Between reals and 8-bit integers: elementwise definitions, exact in every kernel that they are fused into.

Roundings are those of ONNX: products of a dequantisation are float32 numbers, which no fused multiply-add
skips, and quotients are rounded to the nearest integer, ties to even.  Scales and zero points are operands
(``grid``), so that layers that differ in nothing else share a kernel.
"""

import numpy as np
from tvm import te, tirx

from sparsec.schedules import math, tir

_ROUND = 12582912.0  # 1.5 * 2^23: a float32 below 2^22 that it is added to leaves an integer in the low bits
_ROUND_BITS = int(np.float32(_ROUND).view(np.int32))
#: Scales whose quotients neither overflow nor become denormal before they are rounded to 8 bits.
_PLAIN = (2.0**-64, 2.0**64)

#: What a grid holds: scale and its reciprocal, the reals of the least and the largest integer, the zero
#: point, and, as the bits of an int32, what is above the integer when ``_ROUND`` has been added.
_SCALE, _INVERSE, _LEAST, _LARGEST, _ZERO, _EXCESS = range(6)


def grid(scale: float, zero: int, dtype: str) -> np.ndarray:
    """What kernels take of a scale and a zero point for integers of ``dtype``, int8 or uint8: float32 [6]."""
    limits, step = np.iinfo(dtype), np.float32(scale)
    least, largest = (np.float32(bound - zero) for bound in (limits.min, limits.max))
    excess = np.int32(_ROUND_BITS - zero).view(np.float32)
    with np.errstate(over="ignore"):
        values = [step, np.float32(1) / step, least * step, largest * step, np.float32(zero), excess]
    return np.array(values, np.float32)


def plain(scale: float) -> bool:
    """Whether ``quantise`` may multiply by a reciprocal instead of dividing, which gives the same."""
    return _PLAIN[0] < scale < _PLAIN[1]


def quantise(x, grid, dtype: str, unit: bool = False, divides: bool = False):
    """``saturate(round(x / scale) + zero)`` of a float32 tensor, as ``dtype``, one of int8 and uint8.

    ``unit``: the scale is 1.  ``divides``: it is not ``plain``.
    """

    def value(*i):
        steps = _steps(x(*i), grid, dtype, unit, divides) + tir.f32(_ROUND)
        return (tirx.reinterpret("int32", steps) - tirx.reinterpret("int32", grid(_EXCESS))).astype(dtype)

    return te.compute(x.shape, value, name="quantise")


def requantised(x, grid, back, dtype: str, unit: bool = False, divides: bool = False):
    """``dequantise`` with the grid ``back``, of the same zero point, of what ``quantise`` makes of ``x``."""

    def value(*i):
        return math.rounded(nearest(_steps(x(*i), grid, dtype, unit, divides)) * back(_SCALE))

    return te.compute(x.shape, value, name="requantised")


def _steps(x, grid, dtype: str, unit: bool, divides: bool):
    """``x / scale``, kept to what ``dtype`` holds; NaN becomes the least."""
    if divides:
        limits = np.iinfo(dtype)
        least, largest = (tir.f32(float(bound)) - grid(_ZERO) for bound in (limits.min, limits.max))
        return math.within(x / grid(_SCALE), least, largest)
    inside = math.within(x, grid(_LEAST), grid(_LARGEST))
    return inside if unit else math.quotient(inside, grid(_SCALE), grid(_INVERSE))


def nearest(steps):
    """float32 ``steps``, below 2^22 in magnitude, rounded to an integer, ties to even."""
    return math.rounded(steps + tir.f32(_ROUND)) - tir.f32(_ROUND)


def codes(steps, zero: int, dtype: str):
    """The integer nearest to float32 ``steps`` plus ``zero``, saturated."""
    limits = np.iinfo(dtype)
    low, high = (tir.f32(float(bound - zero)) for bound in (limits.min, limits.max))
    return (_nearest(tirx.min(tirx.max(steps, low), high)) + tir.i32(zero)).astype(dtype)


def _nearest(steps):
    """The int32 nearest to float32 ``steps``, ties to even, below 2^22 in magnitude."""
    return tirx.reinterpret("int32", steps + tir.f32(_ROUND)) - tir.i32(_ROUND_BITS)


def dynamic_scale(low, high):
    """The scale of uint8 for values from ``low`` to ``high``, scalars, and 0; 1 where there are no others."""

    def value():
        zero = tir.f32(0.0)
        span = (tirx.max(high(), zero) - tirx.min(low(), zero)) / tir.f32(255.0)
        return tirx.Select(span > zero, span, tir.f32(1.0))

    return te.compute((), value, name="dynamic_scale")


def dynamic_zero(low, scale):
    """The zero point that belongs to it."""
    return te.compute(
        (), lambda: codes(-tirx.min(low(), tir.f32(0.0)) / scale(), 0, "uint8"), name="dynamic_zero"
    )


def dynamic_quantise(x, scale, zero):
    """``quantise`` to uint8 by a scale and a zero point that are computed."""

    def value(*i):
        moved = zero().astype("float32")
        within = tirx.min(tirx.max(x(*i) / scale(), -moved), tir.f32(255.0) - moved)
        return (_nearest(within) + zero().astype("int32")).astype("uint8")

    return te.compute(x.shape, value, name="dynamic_quantise")


def dequantise(x, grid):
    """``(x - zero) * scale`` as float32."""

    def value(*i):
        real = x(*i).astype("int32").astype("float32") - grid(_ZERO)  # exact: integers of 9 bits
        return math.rounded(real * grid(_SCALE))

    return te.compute(x.shape, value, name="dequantise")


def product(x, y, shape):
    """``x * y`` of float32 tensors that broadcast to ``shape``, rounded to float32."""
    return te.compute(
        _dims(shape), lambda *i: math.rounded(_at(x, i, shape) * _at(y, i, shape)), name="product"
    )


def add(x, y, factors, shape, offset: int):
    """QuantizedAdd: ``x`` and ``y`` are uint8 and broadcast to ``shape``, and so is the sum.

    ``factors`` holds the attributes a, b and shift.
    """

    def real(codes_at):
        wide = codes_at.astype("int32")
        return (wide - tir.i32(offset) if offset else wide).astype("float32")

    def value(*i):
        inner = math.fused(real(_at(y, i, shape)), factors(1), factors(2))
        return codes(math.fused(real(_at(x, i, shape)), factors(0), inner), offset, "uint8")

    return te.compute(_dims(shape), value, name="quantized_add")


def clip(x, bounds):
    """Integers within ``bounds``, the least and the largest."""
    return te.compute(x.shape, lambda *i: tirx.min(tirx.max(x(*i), bounds(0)), bounds(1)), name="clip")


def _dims(shape):
    return [tir.i64(d) for d in shape]  # other integers would be other shapes to fusion


def _at(x, index, shape):
    """``x`` at ``index`` of the ``shape`` that it broadcasts to."""
    own = zip(x.shape, index[len(index) - len(x.shape) :], shape[len(index) - len(x.shape) :], strict=True)
    return x(*(i if int(d) == whole else tir.i64(0) for d, i, whole in own))
