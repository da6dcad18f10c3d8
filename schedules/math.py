"""Vector mathematics: what ``exp``, ``erf``, ``tanh`` and their relatives become on a CPU.

TVM lowers them to one libm call per element.  ``install`` replaces the lowering for float32 by what is in
``polynomials``; it is called once by the build, before any kernel is lowered.  Other types keep libm, and so
does ``pow`` but for the constant exponents 2, 3, 4, -1, 1/2, -1/2; log2 and log10 are within 3 ulp.  Where a
level has better instructions, ``for_level`` names the operator to use: those of ``tables`` and ``avx512``.
"""

import functools
import threading
from collections.abc import Callable

from tvm import ir, tirx

from sparsec.schedules import avx512, polynomials, tables, tir
from sparsec.schedules.polynomials import let
from sparsec.schedules.target import X86_LEVELS

# Operators of our own ---------------------------------------------------------------------------------
# They stay calls until TVM's last pass, so that no simplifier copies their operands.


def maximum(a, b):
    """The larger of two float32 or float64 values; NaN where either is NaN, as in ONNX Runtime."""
    return _own("maximum", a, b)


def minimum(a, b):
    """The smaller of two float32 or float64 values; NaN where either is NaN."""
    return _own("minimum", a, b)


def exp_not_positive(x):
    """e^x for float32 x <= 0, or NaN, in two thirds of the instructions of exp; below 2^-126 it is 0.

    For kernels that subtract a maximum first, where such a term is lost beside the 1 of the maximum.
    """
    return _own("exp_not_positive", x)


def rounded(x):
    """``x`` itself, rounded to float32: a product is not contracted with a sum that follows."""
    return _own("rounded", x)


def fused(x, y, z):
    """``x * y + z`` in float32, rounded once."""
    return _own("fused", x, y, z)


def within(x, least, most):
    """float32 ``x`` kept between two others; NaN becomes ``least``."""
    return _own("within", x, least, most)


def quotient(x, divisor, inverse):
    """float32 ``x / divisor``, rounded, of the rounded ``inverse``; neither it nor ``x`` near overflow.

    A first guess and its remainder (P. Markstein, IBM J. Res. Dev. 34, 1990).
    """
    return _own("quotient", x, divisor, inverse)


def to_bfloat16(x):
    """The bit pattern, a uint16, of the bfloat16 nearest to float32 x; ties to even, NaN stays NaN.

    Where a level has an instruction for it, the kernel needs what ``elements.imported`` brings.
    """
    install()
    dtype = str(x.ty.dtype).replace("float32", "uint16")
    return tirx.call_intrin(dtype, f"{_PREFIX}to_bfloat16", x)


def to_float16(x):
    """The bit pattern, a uint16, of the float16 nearest to float32 x; ties to even, NaN stays NaN."""
    install()
    return tirx.call_intrin(str(x.ty.dtype).replace("float32", "uint16"), f"{_PREFIX}to_float16", x)


def from_float16(bits):
    """The float32 value of a float16's bit pattern, a uint16."""
    install()
    return tirx.call_intrin(str(bits.ty.dtype).replace("uint16", "float32"), f"{_PREFIX}from_float16", bits)


def _own(name: str, *args):
    install()
    return tirx.call_intrin(args[0].ty, f"{_PREFIX}{name}", *args)


def _extremum_rule(better, call):
    a, b = call.args
    if _is_constant(a):
        a, b = b, a
    if _is_constant(b):
        # A comparison with NaN is false, so x itself is the answer.
        return let(a, lambda x: tirx.Select(better(b, x), b, x), "x")

    def both(x, y):
        return tirx.Select(tirx.Or(better(y, x), _is_nan(y)), y, x)

    return let(a, lambda x: let(b, lambda y: both(x, y), "y"), "x")


def _is_nan(x):
    """TVM's simplifier takes ``x != x`` for false, also where x is a float."""
    infinity = tirx.const(float("inf"), str(x.ty.dtype).partition("x")[0])
    return tirx.Not(x <= (tir.broadcast(infinity, tir.lanes_of(x)) if tir.lanes_of(x) > 1 else infinity))


def _is_constant(expr) -> bool:
    return isinstance(expr.value if isinstance(expr, tirx.Broadcast) else expr, tirx.FloatImm)


def _within_rule(call):
    x, least, most = call.args
    above = let(x, lambda x: tirx.Select(x > least, x, least), "x")
    return let(above, lambda y: tirx.Select(y < most, y, most), "y")


def _quotient_rule(call):
    x, divisor, inverse = call.args

    def corrected(x, guess):
        return fused(fused(-guess, divisor, x), inverse, guess)

    return let(x, lambda x: let(rounded(x * inverse), lambda guess: corrected(x, guess), "guess"), "x")


# Lowering rules ---------------------------------------------------------------------------------------


def _per_lane(call, name: str):
    """One libm call per lane: ``name`` is the double function, ``name`` + "f" the float one."""
    scalar = str(call.ty.dtype).partition("x")[0]
    name += {"float32": "f", "float64": ""}[scalar]

    def one(*args):
        return tirx.call_pure_extern(scalar, name, *args)

    lanes = tir.lanes_of(call)
    if lanes == 1:
        return one(*call.args)
    parts = [one(*(tirx.Shuffle([a], [tirx.IntImm("int32", i)]) for a in call.args)) for i in range(lanes)]
    return tirx.Shuffle(parts, [tirx.IntImm("int32", i) for i in range(lanes)])


def _rule(polynomial, libm: str, call):
    if not str(call.ty.dtype).startswith("float32"):
        return _per_lane(call, libm)
    return let(call.args[0], polynomial, "x")


def _times_log(factor: float, libm: str, call):
    return _rule(lambda x: polynomials.log(x) * tirx.const(factor, x.ty), libm, call)


def _bfloat16_rule(call):
    return let(call.args[0], polynomials.to_bfloat16, "x")


def _to_float16_rule(call):
    half = call.args[0].astype(str(call.ty.dtype).replace("uint16", "float16"))
    return tirx.reinterpret(call.ty, half)


def _from_float16_rule(call):
    bits = call.args[0]
    half = str(bits.ty.dtype).replace("uint16", "float16")
    return tirx.reinterpret(half, bits).astype(call.ty)


def _narrow_rule(known: tuple[int, ...], call):
    lanes = tir.lanes_of(call)
    if lanes not in known:
        return _bfloat16_rule(call)
    return tirx.call_extern(call.ty, f"sparsec_narrow_{lanes}", call.args[0])


def _sigmoid_rule(call):
    if str(call.ty.dtype).startswith("float32"):
        return let(call.args[0], polynomials.sigmoid, "x")
    one = tirx.const(1.0, call.ty)
    return one / (one + tirx.exp(-call.args[0]))


def _rsqrt_rule(call):
    root = tirx.call_llvm_pure_intrin(call.ty, "llvm.sqrt", call.args[0])
    return tirx.const(1.0, call.ty) / root


def _power_rule(call):
    base, exponent = call.args
    if isinstance(exponent, tirx.Broadcast):
        exponent = exponent.value
    constant = float(exponent.value) if isinstance(exponent, tirx.FloatImm) else None
    if str(call.ty.dtype).startswith("float32") and constant in (2.0, 3.0, 4.0, -1.0, 0.5, -0.5):
        return let(base, lambda x: polynomials.power(x, constant), "x")
    return _per_lane(call, "pow")


_RULES = {
    "exp": functools.partial(_rule, polynomials.exp, "exp"),
    "log": functools.partial(_rule, polynomials.log, "log"),
    "log1p": functools.partial(_rule, polynomials.log1p, "log1p"),
    "log2": functools.partial(_times_log, 1.4426950408889634, "log2"),
    "log10": functools.partial(_times_log, 0.4342944819032518, "log10"),
    "sigmoid": _sigmoid_rule,
    "tanh": functools.partial(_rule, polynomials.tanh, "tanh"),
    "erf": functools.partial(_rule, polynomials.erf, "erf"),
    "rsqrt": _rsqrt_rule,
    "pow": _power_rule,
    "isnan": lambda call: _is_nan(call.args[0]),
    # TVM has no lowering for the first two, and an inexact one for the third near zero.
    "sinh": lambda call: _per_lane(call, "sinh"),
    "cosh": lambda call: _per_lane(call, "cosh"),
    "atanh": lambda call: _per_lane(call, "atanh"),
}

_PREFIX = "sparsec."
#: Levels with instructions of bfloat16, and the lanes for which ``elements`` has them.
DOT_LANES = {"v4bf16": (16, 8), "neonbf16": (16, 8, 4)}
_OWN_RULES = {
    "maximum": functools.partial(_extremum_rule, lambda a, b: a > b),
    "minimum": functools.partial(_extremum_rule, lambda a, b: a < b),
    "exp_not_positive": lambda call: let(call.args[0], polynomials.exp_not_positive, "x"),
    "to_bfloat16": _bfloat16_rule,
    "to_float16": _to_float16_rule,
    "from_float16": _from_float16_rule,
    "within": _within_rule,
    "quotient": _quotient_rule,
    "rounded": lambda call: tir.llvm_intrinsic("llvm.arithmetic.fence", call.ty, *call.args),
    "fused": lambda call: tir.llvm_intrinsic("llvm.fma", call.ty, *call.args),
}


def _level_rule(name: str, lanes: int, form: Callable, call):
    """``form`` for float32 vectors of ``lanes``, the polynomial for all others."""
    if str(call.ty.dtype) == f"float32x{lanes}":
        return let(call.args[0], form, "x")
    return (_RULES | _OWN_RULES)[name](call)


#: Level and function: what the instructions of the level make faster.
_LEVEL_RULES = {
    ("v4", name): functools.partial(_level_rule, name, avx512.LANES, form)
    for name, form in avx512.FORMS.items()
} | {
    (level, name): functools.partial(_level_rule, name, t.lanes, functools.partial(tables.odd, table=t))
    for name, level, t in tables.TABLES
}
_LEVEL_RULES |= {
    (cpu.name, name): rule
    for cpu in X86_LEVELS.values()
    for (level, name), rule in _LEVEL_RULES.items()
    if level == cpu.base
}
_LEVEL_RULES |= {
    (level, "to_bfloat16"): functools.partial(_narrow_rule, lanes) for level, lanes in DOT_LANES.items()
}

_LEVEL = 120  # above every rule that TVM registers itself
_PURE = 1  # tirx::CallEffectKind::kPure


_INSTALLED = threading.Lock()


def install() -> None:
    """Makes the rules above TVM's lowering for every LLVM target of this process; a second call is free."""
    # TVM's registry takes a row once, and kernels of several levels may be built side by side.
    with _INSTALLED:
        _install_once()


@functools.cache
def _install_once() -> None:
    x = tirx.Var("x", "float32")
    for name, rule in _RULES.items():
        _lower(getattr(tirx, name)(*(x, x) if name == "pow" else (x,)).op.name, rule)
    levels = {f"{level}.{name}": rule for (level, name), rule in _LEVEL_RULES.items()}
    for name, rule in (_OWN_RULES | levels).items():
        ir.register_op_attr(f"{_PREFIX}{name}", "TCallEffectKind", _PURE)
        ir.register_op_attr(f"{_PREFIX}{name}", "TScriptPrinterName", f"{_PREFIX}{name}")
        _lower(f"{_PREFIX}{name}", rule)


@functools.cache
def lowered() -> frozenset[str]:
    """Names of the TIR operators that ``install`` gives a rule."""
    x = tirx.Var("x", "float32")
    known = {getattr(tirx, name)(*(x, x) if name == "pow" else (x,)).op.name for name in _RULES}
    return frozenset(known | {f"{_PREFIX}{name}" for name in _OWN_RULES})


def for_level(op: ir.Op, level: str) -> ir.Op:
    """What to take for ``op`` in kernels for ``level``: a faster operator of that level, or ``op`` itself."""
    name = op.name.rpartition(".")[2]
    return ir.Op.get(f"{_PREFIX}{level}.{name}") if (level, name) in _LEVEL_RULES else op


def _lower(op: str, rule: Callable) -> None:
    def lower(call):
        if "float16" not in str(call.ty.dtype):
            return rule(call)
        wide = [
            a.astype(str(a.ty.dtype).replace("bfloat16", "float32").replace("float16", "float32"))
            for a in call.args
        ]
        return tirx.call_intrin(wide[0].ty, op, *wide).astype(call.ty)

    ir.register_op_attr(op, "TVectorizable", True, level=_LEVEL)
    tirx.register_intrin_lowering(op, target="llvm", f=lower, level=_LEVEL)
