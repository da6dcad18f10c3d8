"""Polynomials for whole vectors: exp, log, tanh, erf and their relatives as float32 expressions.

==========  ==================================================================================  =========
function    method                                                                              max error
==========  ==================================================================================  =========
exp         2^n * e^r, |r| <= ln2/2, degree 6; scaled in two steps, so denormals are right      1.2 ulp
log         2^e * m, sqrt(1/2) <= m < sqrt(2), degree 11                                        1 ulp
log1p       log(1 + x) with Kahan's correction                                                  2.5 ulp
sigmoid     z / (1 + z) or 1 / (1 + z) with z = exp(-|x|)                                       2.5 ulp
tanh        odd polynomial below 0.625, 1 - 2 / (exp(2|x|) + 1) above                           1.5 ulp
erf         odd polynomial below 0.921875, 1 - exp(-q(|x|)) above                               2 ulp
==========  ==================================================================================  =========

The coefficients are least squares fits on Chebyshev nodes, reweighted until the error is even (Lawson), of
the function in float64, rounded to float32.  NaN gives NaN, infinities give the limits, ``-0.0`` keeps its
sign where the function is odd.  ``x`` is a float32 expression of any number of lanes throughout, a variable
where a function uses it more than once.
"""

from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir

_EXP = (1.0, 1.0, 0.5, 0.16666513681411743, 0.041666191071271896, 0.00836953055113554, 0.0013951562577858567)
_LOG = (
    0.3333331048488617,
    -0.24999986588954926,
    0.20002152025699615,
    -0.16669197380542755,
    0.14219918847084045,
    -0.12385798245668411,
    0.1186603531241417,
    -0.11779666692018509,
    0.06917983293533325,
)
_TANH = (
    -0.3333333134651184,
    0.1333320289850235,
    -0.05394625663757324,
    0.021697290241718292,
    -0.008167649619281292,
    0.002133022528141737,
)
_ERF_SMALL = (
    0.128379225730896,
    -0.37612634897232056,
    0.11283701658248901,
    -0.026859702542424202,
    0.005201715975999832,
    -0.0008149807108566165,
    8.397801866522059e-05,
)
_ERF_LARGE = (
    -0.00016308124759234488,
    1.129448652267456,
    0.633509635925293,
    0.10805603861808777,
    -0.024930315092206,
    0.004070940427482128,
    -0.00040201417868956923,
    1.5212791367957834e-05,
    4.564583946375933e-07,
)
_LOG2E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # few bits: n * _LN2_HIGH is exact
_LN2_LOW = -2.12194440e-4
ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
_ROUND_BITS = 0x4B400000


def _lanes(x) -> int:
    return tir.lanes_of(x)


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(x, value: float):
    return tir.broadcast(tir.f32(value), _lanes(x)) if _lanes(x) > 1 else tir.f32(value)


def splat_int(x, value: int):
    constant = tirx.IntImm("int32", value)
    return tir.broadcast(constant, _lanes(x)) if _lanes(x) > 1 else constant


def bits(x):
    return tirx.reinterpret(_typed("int32", _lanes(x)), x)


def _float(x):
    return tirx.reinterpret(_typed("float32", _lanes(x)), x)


def _pure(x, name: str):
    return tirx.call_llvm_pure_intrin(x.ty, name, x)


def let(value, body: Callable, name: str = "t"):
    """``body(name)`` where ``name`` stands for ``value``, computed once."""
    variable = tirx.Var(name, value.ty)
    return tirx.Let(variable, value, body(variable))


def _poly(x, coefficients):
    """Horner's rule; LLVM contracts each step to a fused multiply-add where the level has one."""
    result = splat(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        result = result * x + splat(x, c)
    return result


def _select(condition, yes, no):
    return tirx.Select(condition, yes, no)


def exp_reduced(x, scale: Callable):
    """e^x for x already within (-104, 89), or NaN; ``scale(m, t)`` is m 2^n for the n at the end of t."""

    def scaled(t):
        n = t - splat(x, ROUND)
        reduced = x - n * splat(x, _LN2_HIGH) - n * splat(x, _LN2_LOW)
        return let(let(reduced, lambda r: _poly(r, _EXP), "r"), lambda m: scale(m, t), "m")

    return let(x * splat(x, _LOG2E) + splat(x, ROUND), scaled)


def _times_power(mantissa, t):
    """m 2^n where the result is no denormal: n is added to the exponent; the rest of t leaves at the top."""
    return _float(bits(mantissa) + tirx.shift_left(bits(t), splat_int(mantissa, 23)))


def _times_any_power(mantissa, t):
    """m 2^n in two halves, so that the result may be denormal or infinite."""

    def twice(h):
        up = _float(bits(mantissa) + tirx.shift_left(h, splat_int(mantissa, 23)))
        rest = bits(t) - h + splat_int(mantissa, 127 - _ROUND_BITS)
        return up * _float(tirx.shift_left(rest, splat_int(mantissa, 23)))

    half = tirx.shift_right(bits(t) - splat_int(mantissa, _ROUND_BITS), splat_int(mantissa, 1))
    return let(half, twice, "half")


def exp(x, scale: Callable = _times_any_power):
    low, high = splat(x, -104.0), splat(x, 89.0)
    bounded = let(_select(x > high, high, x), lambda b: _select(b < low, low, b), "b")
    return let(bounded, lambda b: exp_reduced(b, scale), "x")


def to_bfloat16(x):
    """The upper half of x's bits, rounded to nearest, ties to even; a bit set keeps a NaN one."""

    def round_up(b):
        odd = tirx.bitwise_and(tirx.shift_right(b, splat_int(x, 16)), splat_int(x, 1))
        nearest = tirx.shift_right(b + odd + splat_int(x, 0x7FFF), splat_int(x, 16))
        quiet = tirx.bitwise_or(tirx.shift_right(b, splat_int(x, 16)), splat_int(x, 0x40))
        number = magnitude(x) <= splat(x, float("inf"))
        return tirx.Select(number, nearest, quiet).astype(_typed("uint16", _lanes(x)))

    return let(bits(x), round_up, "b")


def exp_not_positive(x):
    low = splat(x, -87.33654)
    result = let(_select(x < low, low, x), lambda b: exp_reduced(b, _times_power), "b")
    return _select(x < low, splat(x, 0.0), result)


def log(x):
    """Natural logarithm: log(x) = e ln2 + log1p(f), f = m - 1."""
    tiny = x < splat(x, 1.17549435e-38)

    def split(normal):
        # The exponent that puts the mantissa into [sqrt(1/2), sqrt(2)).
        shifted = bits(normal) - splat_int(x, 0x3F3504F3)
        e = tirx.shift_right(shifted, splat_int(x, 23))

        def sum_up(e):
            f = _float(bits(normal) - tirx.shift_left(e, splat_int(x, 23))) - splat(x, 1.0)
            scale = tirx.Cast(_typed("float32", _lanes(x)), e) - _select(tiny, splat(x, 23.0), splat(x, 0.0))

            def terms(f):
                def with_scale(n):
                    square = f * f
                    tail = square * f * _poly(f, _LOG) + n * splat(x, _LN2_LOW)
                    return n * splat(x, _LN2_HIGH) + (f + (tail - splat(x, 0.5) * square))

                return let(scale, with_scale, "n")

            return let(f, terms, "f")

        return let(e, sum_up, "e")

    finite = let(_select(tiny, x * splat(x, 8388608.0), x), split, "normal")
    infinity, nan = splat(x, float("inf")), splat(x, float("nan"))
    # x == inf and NaN are their own logarithms.
    own = _select(x < infinity, finite, x)
    return _select(x > splat(x, 0.0), own, _select(tirx.EQ(x, splat(x, 0.0)), splat(x, float("-inf")), nan))


def log1p(x):
    def correct(u):
        ratio = log(u) * (x / (u - splat(x, 1.0)))
        lost = tirx.EQ(u, splat(x, 1.0))
        return _select(lost, x, _select(u < splat(x, float("inf")), ratio, log(u)))

    return let(splat(x, 1.0) + x, correct, "u")


def sigmoid(x):
    def fraction(z):
        return _select(x < splat(x, 0.0), z, splat(x, 1.0)) / (splat(x, 1.0) + z)

    return let(exp(negative(magnitude(x))), fraction, "z")


def tanh(x):
    def both(a):
        square = a * a
        small = a + a * (square * _poly(square, _TANH))
        bounded = _select(a > splat(x, 10.0), splat(x, 10.0), a)
        large = splat(x, 1.0) - splat(x, 2.0) / (
            let(bounded + bounded, lambda b: exp_reduced(b, _times_power), "x") + splat(x, 1.0)
        )
        return with_sign(_select(a < splat(x, 0.625), small, large), x)

    return let(magnitude(x), both, "a")


def erf(x):
    def both(a):
        square = a * a
        small = a + a * _poly(square, _ERF_SMALL)
        bounded = _select(a > splat(x, 4.0), splat(x, 4.0), a)
        decay = let(bounded, lambda b: negative(_poly(b, _ERF_LARGE)), "b")
        large = splat(x, 1.0) - let(decay, lambda b: exp_reduced(b, _times_power), "x")
        return with_sign(_select(a < splat(x, 0.921875), small, large), x)

    return let(magnitude(x), both, "a")


def magnitude(x):
    return _float(tirx.bitwise_and(bits(x), splat_int(x, 0x7FFFFFFF)))


def negative(x):
    return _float(tirx.bitwise_xor(bits(x), splat_int(x, -0x80000000)))


def with_sign(value, sign):
    """``value``, which is not negative, with the sign bit of ``sign``."""
    return _float(tirx.bitwise_or(bits(value), tirx.bitwise_and(bits(sign), splat_int(sign, -0x80000000))))


def power(x, exponent: float):
    """x to one of the constants 2, 3, 4, -1, 1/2, -1/2."""
    if exponent in (2.0, 3.0, 4.0):
        return let(x, lambda t: {2.0: t * t, 3.0: t * t * t, 4.0: (t * t) * (t * t)}[exponent], "t")
    if exponent == -1.0:
        return splat(x, 1.0) / x
    # pow(-0, 1/2) is +0 and pow(-inf, 1/2) is +inf, unlike sqrt.
    root = _pure(x + splat(x, 0.0), "llvm.sqrt")
    root = _select(tirx.EQ(x, splat(x, float("-inf"))), splat(x, float("inf")), root)
    return root if exponent == 0.5 else splat(x, 1.0) / root
