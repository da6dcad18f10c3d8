"""Between reals and 8-bit integers: elementwise definitions, exact in every kernel that they are fused into.

Roundings are those of ONNX: products of a dequantisation are float32 numbers, which no fused multiply-add
skips, and quotients are rounded to the nearest integer, ties to even.
"""

import numpy as np
from tvm import te, tirx

from sparsec.schedules import math, tir

_ROUND = 12582912.0  # 1.5 * 2^23: a float32 below 2^22 that it is added to leaves an integer in the low bits
_ROUND_BITS = int(np.float32(_ROUND).view(np.int32))


def quantise(x, scale: float, zero: int, dtype: str):
    """``saturate(round(x / scale) + zero)`` of a float32 tensor, as ``dtype``, one of int8 and uint8."""

    def value(*i):
        steps = x(*i) if scale == 1.0 else x(*i) / tir.f32(scale)
        return codes(steps, zero, dtype)

    return te.compute(x.shape, value, name="quantise")


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


def dequantise(x, scale: float, zero: int):
    """``(x - zero) * scale`` as float32."""

    def value(*i):
        wide = x(*i).astype("int32")
        real = (wide - tir.i32(zero) if zero else wide).astype("float32")
        return math.rounded(real * tir.f32(scale))

    return te.compute(x.shape, value, name="dequantise")


def product(x, y, shape):
    """``x * y`` of float32 tensors that broadcast to ``shape``, rounded to float32."""
    return te.compute(
        _dims(shape), lambda *i: math.rounded(_at(x, i, shape) * _at(y, i, shape)), name="product"
    )


def add(x, y, shape, a: float, b: float, shift: float, offset: int):
    """QuantizedAdd: ``x`` and ``y`` are uint8 and broadcast to ``shape``, and so is the sum."""

    def real(codes_at):
        wide = codes_at.astype("int32")
        return (wide - tir.i32(offset) if offset else wide).astype("float32")

    def value(*i):
        inner = math.fused(real(_at(y, i, shape)), tir.f32(b), tir.f32(shift))
        return codes(math.fused(real(_at(x, i, shape)), tir.f32(a), inner), offset, "uint8")

    return te.compute(_dims(shape), value, name="quantized_add")


def clip(x, least: int, most: int):
    """Integers within ``least`` and ``most``."""

    def value(*i):
        low, high = (tirx.const(bound, x.dtype) for bound in (least, most))
        return tirx.min(tirx.max(x(*i), low), high)

    return te.compute(x.shape, value, name="clip")


def _dims(shape):
    return [tir.i64(d) for d in shape]  # other integers would be other shapes to fusion


def _at(x, index, shape):
    """``x`` at ``index`` of the ``shape`` that it broadcasts to."""
    own = zip(x.shape, index[len(index) - len(x.shape) :], shape[len(index) - len(x.shape) :], strict=True)
    return x(*(i if int(d) == whole else tir.i64(0) for d, i, whole in own))
