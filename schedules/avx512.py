"""exp and sigmoid in the instructions that AVX-512 has for them, for vectors of 16 lanes.

``vscalefps`` multiplies by a power of two whatever the result, denormal or infinite; ``vrcp14ps`` and one
step of Newton stand for a division by a number between 1 and 2.  The errors are those of ``polynomials``.
"""

from tvm import tirx

from sparsec.schedules import polynomials, tir
from sparsec.schedules.polynomials import ROUND, exp_reduced, let, magnitude, negative, splat

LANES = 16

_EVERY = tirx.IntImm("int16", -1)  # no lane is masked
_CURRENT = tir.i32(4)  # the rounding mode that the thread has


def exp(x):
    """e^x."""
    return polynomials.exp(x, _scaled)


def exp_not_positive(x):
    """e^x for x <= 0, or NaN."""
    low = splat(x, -104.0)
    return let(tirx.Select(x < low, low, x), lambda b: exp_reduced(b, _scaled), "b")


def sigmoid(x):
    """1 / (1 + e^-x)."""
    one = splat(x, 1.0)

    def fraction(z):
        return let(one + z, lambda d: let(_reciprocal(d), lambda y: quotient(z, d, y), "y"), "d")

    def quotient(z, d, y):
        return tirx.Select(x < splat(x, 0.0), z, one) * (y + y * (one - d * y))

    return let(exp_not_positive(negative(magnitude(x))), fraction, "z")


def _scaled(mantissa, t):
    n = t - splat(mantissa, ROUND)
    name = "llvm.x86.avx512.mask.scalef.ps.512"
    return tir.llvm_intrinsic(name, mantissa.ty, mantissa, n, mantissa, _EVERY, _CURRENT)


def _reciprocal(x):
    return tir.llvm_intrinsic("llvm.x86.avx512.rcp14.ps.512", x.ty, x, x, _EVERY)


FORMS = {"exp": exp, "exp_not_positive": exp_not_positive, "sigmoid": sigmoid}
