"""Exact mathematics on GPUs: CUDA's full-precision functions, and extrema that keep NaN.

Nothing here is fast-math: ``expf`` and its relatives are within 2 units in the last place, divisions and
square roots are rounded correctly, denormals are kept.  (CUDA C++ Programming Guide, "Mathematical
Functions".)
"""

import functools

import tvm_ffi
from tvm import tirx

from sparsec.schedules import math, tir

#: Goes before every generated source.
PRELUDE = """\
// The larger and the smaller of two numbers; NaN where either is NaN.
template <class T> __device__ __forceinline__ T sparsec_max(T a, T b) { return a > b || a != a ? a : b; }
template <class T> __device__ __forceinline__ T sparsec_min(T a, T b) { return a < b || a != a ? a : b; }

// Bit patterns of short numbers, without cuda_fp16.h and cuda_bf16.h, which NVRTC does not come with.
__device__ __forceinline__ unsigned short sparsec_to_bfloat16(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ __forceinline__ unsigned short sparsec_to_float16(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ __forceinline__ float sparsec_from_float16(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// For shares that are rounded to 16 bits: 2^x to 22 bits, and two floats as neighbours in a word.
__device__ __forceinline__ float sparsec_share_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ unsigned sparsec_pair_bfloat16(float low, float high) {
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
__device__ __forceinline__ unsigned sparsec_pair_float16(float low, float high) {
    unsigned bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

// As in math_constants.h.
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_INF __longlong_as_double(0x7ff0000000000000ll)
#define CUDART_NAN __longlong_as_double(0xfff8000000000000ll)
"""

#: TIR operator -> CUDA's function on doubles; the one on floats ends with an f.
FUNCTIONS = {
    **{
        name: name
        for name in ("exp", "exp2", "exp10", "log", "log1p", "log2", "log10", "pow", "sqrt", "hypot")
    },
    **{name: name for name in ("sin", "cos", "tan", "asin", "acos", "atan", "atan2")},
    **{name: name for name in ("sinh", "cosh", "tanh", "asinh", "acosh", "atanh")},
    **{name: name for name in ("erf", "fmod", "floor", "ceil", "trunc", "fabs")},
    **dict.fromkeys(("round", "nearbyint"), "rint"),
}

_LEVEL = 120  # above every rule that TVM registers itself


def install() -> None:
    """Makes these functions TVM's lowering for CUDA in this process; a second call is free."""
    math.install()  # the operators of our own are registered there
    _install_once()


@functools.cache
def _install_once() -> None:
    for name, function in FUNCTIONS.items():
        _lower(f"tirx.{name}", functools.partial(_call, function))
    _lower("tirx.sigmoid", _sigmoid)
    _lower("tirx.rsqrt", lambda call: _one(call) / _call("sqrt", call))
    _lower("sparsec.maximum", functools.partial(_own, "sparsec_max"))
    _lower("sparsec.minimum", functools.partial(_own, "sparsec_min"))
    _lower("sparsec.exp_not_positive", functools.partial(_call, "exp"))
    for name in ("to_bfloat16", "to_float16", "from_float16"):
        _lower(f"sparsec.{name}", functools.partial(_own, f"sparsec_{name}"))


def _lower(op: str, rule) -> None:
    def lower(call):
        if "float16" not in str(call.ty.dtype):
            return rule(call)
        wide = [a.astype("float32") for a in call.args]
        return rule(tirx.call_intrin(wide[0].ty, op, *wide)).astype(call.ty)

    tirx.register_intrin_lowering(op, target="cuda", f=lower, level=_LEVEL)


def _one(call):
    return tirx.const(1.0, call.ty)


def _call(function: str, call):
    # The code generator calls it for each lane of a vector.
    scalar = str(call.ty.dtype).partition("x")[0]
    name = {"float32": function + "f", "float64": function}[scalar]
    return tirx.call_pure_extern(call.ty, name, *call.args)


def _sigmoid(call):
    # e^-x may be infinite; its reciprocal is then the zero that it should be.
    return _one(call) / (_one(call) + tirx.exp(-call.args[0]))


def _own(function: str, call):
    """A function of ``PRELUDE``."""
    return tirx.call_pure_extern(call.ty, function, *call.args)


def keep_nan(stmt: tir.Stmt) -> tir.Stmt:
    """``stmt`` with maxima and minima of floats as ONNX has them; CUDA's ``max`` drops a NaN."""

    def visit(function, node, mutator):
        a, b = mutator.mutate(node.a), mutator.mutate(node.b)
        if "float" not in str(node.ty.dtype):
            return type(node)(a, b)
        return tirx.call_pure_extern(node.ty, function, a, b)

    names = {tirx.Max: "sparsec_max", tirx.Min: "sparsec_min"}
    return tvm_ffi.structural_mutate(
        stmt, [(kind, functools.partial(visit, name)) for kind, name in names.items()]
    )
