"""Element types of a contraction: how values are stored, what they mean, how they are multiplied.

================  ===========  =================================  =========================================
element           activations  packed weights                     one step of the reduction
================  ===========  =================================  =========================================
float32           float32      float32                            ``sum + x * w``
bfloat16          bit pattern  pairs along the reduction, int32   ``sum + x0 * w0 + x1 * w1``, one instruction
bfloat16 weights  float32      bit pattern                        ``sum + x * w``, w widened as it is loaded
================  ===========  =================================  =========================================

Sums are float32 throughout.  A bit pattern is a uint16, so that no pass of TVM rewrites it.  The last word
of an odd number of values is filled with a weight of 0 and the last input channel once more.

``vdpbf16ps`` and ``vcvtneps2bf16`` take denormals for 0; the forms for other levels keep them.
"""

from dataclasses import dataclass

import numpy as np
import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import math, tir
from sparsec.schedules.target import Cpu

_BITS = 16


@dataclass(frozen=True)
class Element:
    """``group`` values along the reduction make one word; dtypes are those of the buffers."""

    name: str
    activation: str
    weight: str
    group: int = 1

    # Packing ------------------------------------------------------------------------------------------

    def words(self, values: int) -> int:
        """Words that hold so many values of one reduction."""
        return -(-values // self.group)

    def args(self, shapes: list[tuple[tuple[int, ...], str]]) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each packed array, given those of the float32 form."""
        if self.name == "float32":
            return shapes
        (values, _), *index = shapes
        *outer, kept, lanes = values
        packed = ((*outer, self.words(kept), lanes), self.weight)
        if self.group > 1:
            index = [((*shape[:-1], self.words(shape[-1]) * self.group), dtype) for shape, dtype in index]
        return [packed, *index]

    def pack(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """The packed arrays of a layer, given those of its float32 form."""
        if self.name == "float32":
            return arrays
        values, *index = arrays
        bits = to_bfloat16(values)
        if self.group == 1:
            return bits, *index
        odd = bits.shape[-2] % self.group
        bits = np.pad(bits, [(0, 0)] * (bits.ndim - 2) + [(0, odd), (0, 0)]).astype(np.uint32)
        pairs = bits[..., 0::2, :] | bits[..., 1::2, :] << np.uint32(_BITS)
        index = [np.pad(i, [(0, 0)] * (i.ndim - 1) + [(0, odd)], mode="edge") for i in index]
        return np.ascontiguousarray(pairs).view(np.int32), *index

    def unpack(self, arrays: tuple[np.ndarray, ...], kept: int) -> tuple[np.ndarray, ...]:
        """The float32 form of packed arrays that hold ``kept`` values a reduction: ``pack``, undone."""
        if self.name == "float32":
            return arrays
        values, *index = arrays
        if self.group > 1:
            both = np.stack([values & 0xFFFF, values >> _BITS], axis=-2)
            values = both.reshape(*values.shape[:-2], -1, values.shape[-1])[..., :kept, :].astype(np.uint16)
            index = [i[..., :kept] for i in index]
        return from_bfloat16(values), *index

    def stored_activations(self, values: np.ndarray) -> np.ndarray:
        return values if self.activation == "float32" else to_bfloat16(values)

    # Meaning, for definitions -------------------------------------------------------------------------

    def activation_value(self, stored):
        return stored if self.activation == "float32" else widened(stored)

    def weight_value(self, word, part):
        """Value ``part`` of a word of weights."""
        if self.group > 1:
            return tirx.reinterpret("float32", (word >> (part.astype("int32") * _BITS)) << tir.i32(_BITS))
        return word if self.weight == "float32" else widened(word)

    # Instructions, for kernels ------------------------------------------------------------------------

    def word(self, cpu: Cpu, x: tir.Buffer, places: list[list], neighbours: bool, first: bool = False):
        """The word of activations at ``places``, which ``neighbours`` in memory or not.

        ``first``: the last of the places may be the first of all values, so nothing before it can be read.
        """
        if self.group == 1:
            return tirx.BufferLoad(x, places[0])
        address = [tirx.address_of(tirx.BufferLoad(x, at)) for at in places]
        if neighbours:
            return tirx.call_extern("int32", "sparsec_word", address[0])
        if cpu.triple.startswith("x86") and not first:
            return tirx.call_extern("int32", "sparsec_pair", *address)
        low, high = (tirx.BufferLoad(x, at).astype("int32") for at in places)
        return low | high << tir.i32(_BITS)

    def weight_vector(self, loaded):
        """What ``multiply_add`` takes of weights as loaded."""
        return widened(loaded, tir.lanes_of(loaded)) if self.weight == "uint16" else loaded

    def multiply_add(self, cpu: Cpu, total, x, w):
        """``total`` and the products of one word."""
        if self.group == 1:
            return total + x * w
        lanes = tir.lanes_of(total)
        if DOT_FEATURE in cpu.features:
            return tirx.call_extern(f"float32x{lanes}", f"sparsec_dot_{lanes}", total, x, w)
        for half in (_low, _high):
            total = total + half(x, lanes) * half(w, lanes)
        return total


FLOAT32 = Element("float32", "float32", "float32")
BFLOAT16 = Element("bfloat16", "uint16", "int32", group=2)
BFLOAT16_WEIGHTS = Element("bfloat16 weights", "float32", "uint16")

#: Precision that is asked for, and the forms of ``layout`` that have it; every other form stays float32.
#: Words take several inputs from one list of positions; where lanes have lists of their own, weights alone
#: are narrow, which is what counts there: few rows meet them, and memory limits.
PRECISIONS = {
    "float32": {},
    "bfloat16": {
        "dense": BFLOAT16,
        "shared": BFLOAT16,
        "lanes": BFLOAT16_WEIGHTS,
        "gather": BFLOAT16_WEIGHTS,
    },
    "bfloat16 weights": dict.fromkeys(("dense", "shared", "lanes", "gather"), BFLOAT16_WEIGHTS),
}


def element(precision: str, form: str) -> Element:
    """What a weight in the packed ``form`` is stored and multiplied as at ``precision``."""
    return PRECISIONS[precision].get(form, FLOAT32)


#: LLVM's feature of a level with ``vdpbf16ps``.
DOT_FEATURE = "+avx512bf16"


def widened(stored, lanes: int = 1):
    """The float32 value of a bfloat16's bit pattern."""
    wide = stored.astype(_typed("int32", lanes)) << tir.broadcast(tir.i32(_BITS), lanes)
    return tirx.reinterpret(_typed("float32", lanes), wide)


def narrowed(value):
    """The bit pattern of the bfloat16 nearest to a float32 value."""
    return math.to_bfloat16(value)


def _low(word, lanes: int):
    return tirx.reinterpret(_typed("float32", lanes), word << tir.broadcast(tir.i32(_BITS), lanes))


def _high(word, lanes: int):
    return tirx.reinterpret(_typed("float32", lanes), word & tir.broadcast(tir.i32(-1 << _BITS), lanes))


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


# NumPy's side -----------------------------------------------------------------------------------------


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(_BITS) & np.uint32(1))) >> np.uint32(_BITS)
    quiet = bits >> np.uint32(_BITS) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(_BITS)).view(np.float32)


# LLVM's side ------------------------------------------------------------------------------------------

_WORD = """
define weak_odr i32 @sparsec_word(ptr %from) alwaysinline {
  %word = load i32, ptr %from, align 2
  ret i32 %word
}
"""

#: The upper value is loaded with the one before it, which the lower one then replaces: two instructions,
#: where LLVM takes four, of which a tile has one set for each row.
_PAIR = """
define weak_odr i32 @sparsec_pair(ptr %low, ptr %high) alwaysinline {
  %before = getelementptr i16, ptr %high, i64 -1
  %word = call i32 asm "movl $2, $0\\0Amovw $1, ${0:w}", "=&r,*m,*m"(
    ptr elementtype(i16) %low, ptr elementtype(i32) %before)
  ret i32 %word
}
"""

_DOT = """
declare <{lanes} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(
  <{lanes} x float>, <{twice} x bfloat>, <{twice} x bfloat>)
define weak_odr <{lanes} x float> @sparsec_dot_{lanes}(
  <{lanes} x float> %sum, <{lanes} x i32> %x, <{lanes} x i32> %w) alwaysinline {{
  %a = bitcast <{lanes} x i32> %x to <{twice} x bfloat>
  %b = bitcast <{lanes} x i32> %w to <{twice} x bfloat>
  %dot = call <{lanes} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(
    <{lanes} x float> %sum, <{twice} x bfloat> %a, <{twice} x bfloat> %b)
  ret <{lanes} x float> %dot
}}
declare <{lanes} x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.{bits}(<{lanes} x float>)
define weak_odr <{lanes} x i16> @sparsec_narrow_{lanes}(<{lanes} x float> %x) alwaysinline {{
  %near = call <{lanes} x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.{bits}(<{lanes} x float> %x)
  %bits = bitcast <{lanes} x bfloat> %near to <{lanes} x i16>
  ret <{lanes} x i16> %bits
}}
"""


_CALLED = ("sparsec_word", "sparsec_pair", "sparsec_dot")


def imported(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc:
    """``func`` with the functions that words and ``math.to_bfloat16`` call on ``cpu``, where it has such."""
    called = []

    def visit(call):
        name = call.op.name if isinstance(call.op, ir.Op) else ""
        external = call.args[0] if name.endswith("call_extern") else None
        if name.endswith("to_bfloat16") or external is not None and external.value.startswith(_CALLED):
            called.append(call)

    tvm_ffi.structural_walk(func.body, (ir.Call, visit))
    if not called:
        return func
    text = _WORD + (_PAIR if cpu.triple.startswith("x86") else "")
    if DOT_FEATURE in cpu.features:
        text += "".join(_DOT.format(lanes=n, twice=2 * n, bits=32 * n) for n in math.DOT_LANES)
    body = tirx.AttrStmt(tir.i32(0), "pragma_import_llvm", ir.StringImm(text), func.body)
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)
