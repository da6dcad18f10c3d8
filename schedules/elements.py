"""Element types of a contraction: how values are stored, what they mean, how they are multiplied.

================  ===========  =================================  =========================================
element           activations  packed weights                     one step of the reduction
================  ===========  =================================  =========================================
float32           float32      float32                            ``sum + x * w``
bfloat16          bit pattern  pairs along the reduction, int32   ``sum + x0 * w0 + x1 * w1``, one instruction
bfloat16 weights  float32      bit pattern                        ``sum + x * w``, w widened as it is loaded
int8              uint8        quads along the reduction, int32   ``sum + x0 * w0 + ... + x3 * w3``, exactly
... inputs        bit pattern  float32                            ``sum + x * w``, x widened as it is loaded
================  ===========  =================================  =========================================

Sums are int32 of int8, else float32.  A bit pattern is a uint16, so that no pass of TVM rewrites it.  The
last word is filled with weights of 0 and the last input channel once more.  ``quads`` has the instructions of
int8, and how it picks the inputs that a pattern keeps; ``lane_words`` how each lane picks words of its own.

``vdpbf16ps``, ``vcvtneps2bf16`` and ``bfdot`` take denormals for 0; the forms for other levels keep them.
"""

import re
from dataclasses import dataclass

import numpy as np
import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import lane_words, layout, math, neon, quads, tir
from sparsec.schedules.bits import from_bfloat16, to_bfloat16
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.quads import Windows
from sparsec.schedules.target import Cpu

_BITS = 16


@dataclass(frozen=True)
class Element:
    """``group`` values along the reduction make one word; dtypes are those of the buffers and the sums."""

    name: str
    activation: str
    weight: str
    group: int = 1
    sums: str = "float32"

    @property
    def bits(self) -> int:
        """Bits of one of the values that share a word."""
        return 32 // self.group

    # Packing ------------------------------------------------------------------------------------------

    def words(self, values: int) -> int:
        """Words that hold so many values of one reduction."""
        return -(-values // self.group)

    def windows(self, pattern: Pattern, channels: int) -> Windows | None:
        """Where words are picked from, if not from positions that are stored one by one."""
        return quads.windows_of(pattern, channels) if self.name == "int8" else None

    def args(self, pattern: Pattern, out: int, taps: tuple[int, ...], channels: int) -> list:
        """Shape and dtype of each packed array, as ``layout.shapes`` says those of float32."""
        arrays = layout.shapes(pattern, out, taps, channels)
        if self.name == "float32":
            return arrays
        (values, _), *index = arrays
        *outer, kept, lanes = values
        packed = ((*outer, self.words(kept), lanes), self.weight)
        if windows := self.windows(pattern, channels):
            index = [((*shape[:-1], windows.words), "int32") for shape, _ in index]
        elif pattern.form(channels) == "lanes":
            index = [
                ((*outer, slots // self.group, words * self.group), "int32")
                for (*outer, slots, words), _ in index
            ]
        elif self.group > 1:
            index = [((*shape[:-1], self.words(shape[-1]) * self.group), dtype) for shape, dtype in index]
        return [packed, *index]

    def pack(
        self, pattern: Pattern, weight: np.ndarray, kept: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """The packed arrays of ``weight [O, T, C]``, as ``layout.pack`` makes those of float32."""
        values, *index = layout.pack(pattern, weight, kept)
        if pattern.form(weight.shape[-1]) == "lanes":
            return self.packed(values), *(lane_words.joined(words, self.group) for words in index)
        short = -values.shape[-2] % self.group
        index = [
            np.pad(i, [(0, 0)] * (i.ndim - 1) + [(0, short)], mode="edge") if short else i for i in index
        ]
        if windows := self.windows(pattern, weight.shape[-1]):
            index = [windows.choices(i) for i in index]
        return self.packed(values), *index

    def packed(self, values: np.ndarray) -> np.ndarray:
        """Float32 ``[..., reduction, lanes]`` as stored, in words along the reduction."""
        if self.weight == "float32":
            return values
        stored = to_int8(values) if self.name == "int8" else to_bfloat16(values)
        if self.group == 1:
            return stored
        short = -values.shape[-2] % self.group
        stored = np.pad(stored, [(0, 0)] * (stored.ndim - 2) + [(0, short), (0, 0)])
        stored = stored.reshape(*stored.shape[:-2], -1, self.group, stored.shape[-1]).swapaxes(-1, -2)
        return np.ascontiguousarray(stored).view(np.int32)[..., 0]

    def unpack(self, pattern: Pattern, arrays: tuple[np.ndarray, ...], out: int, channels: int) -> np.ndarray:
        """The dense float32 weight ``[O, T, C]`` of packed arrays: ``pack``, undone."""
        if self.name == "float32":
            return layout.unpack(pattern, arrays, out, channels)
        values, *index = arrays
        kept, windows = pattern.kept(channels), self.windows(pattern, channels)
        if self.group > 1:
            parts = np.ascontiguousarray(values)[..., None].view(
                np.int8 if self.name == "int8" else np.uint16
            )
            parts = parts.swapaxes(-1, -2)
            values = parts.reshape(*parts.shape[:-3], -1, parts.shape[-1])[..., :kept, :]
            if pattern.form(channels) == "lanes":
                index = [lane_words.split(words, self.group) for words in index]
            else:
                index = [(windows.positions(i) if windows else i)[..., :kept] for i in index]
        values = values.astype(np.float32) if self.name == "int8" else from_bfloat16(values)
        return layout.unpack(pattern, (values, *index), out, channels)

    def stored_activations(self, values: np.ndarray) -> np.ndarray:
        """Those of float32; of int8, numbers of any kind that keep most of the range busy."""
        match self.activation:
            case "float32":
                return values
            case "uint8":
                return np.clip(np.rint(values * 48 + 128), 0, 255).astype(np.uint8)
            case _:
                return to_bfloat16(values)

    # Meaning, for definitions -------------------------------------------------------------------------

    def activation_value(self, stored):
        if self.name == FLOAT16_INPUTS.name:
            return math.from_float16(stored)
        if self.activation == "uint16":
            return widened(stored)
        return stored.astype(self.sums) if self.activation == "uint8" else stored

    def weight_value(self, word, part):
        """Value ``part`` of a word of weights."""
        if self.name == "int8":
            return quads.part(word, part.astype("int32"))
        if self.group > 1:
            return tirx.reinterpret("float32", (word >> (part.astype("int32") * _BITS)) << tir.i32(_BITS))
        return word if self.weight == "float32" else widened(word)

    # Instructions, for kernels ------------------------------------------------------------------------

    def parts(self, cpu: Cpu) -> int:
        """Registers that a vector of packed weights fills while it is multiplied."""
        if self.name == "int8":
            return quads.parts(cpu)
        return 1 if pair_products(cpu) else self.group

    def word(self, cpu: Cpu, x: tir.Buffer, places: list[list], neighbours: bool, first: bool = False):
        """The word of activations at ``places``, which ``neighbours`` in memory or not.

        ``first``: the last of the places may be the first of all values, so nothing before it can be read.
        """
        if self.group == 1:
            return tirx.BufferLoad(x, places[0])
        address = [tirx.address_of(tirx.BufferLoad(x, at)) for at in places]
        if neighbours:
            return tirx.call_extern("int32", f"sparsec_word_{self.bits}", address[0])
        if self.group == 2 and cpu.triple.startswith("x86") and not first:
            return tirx.call_extern("int32", "sparsec_pair", *address)
        return self.joined(tirx.BufferLoad(x, at) for at in places)

    def joined_in(self, cpu: Cpu, values: list):
        """``joined``, as ``multiply_add`` takes it where lanes have activations of their own."""
        found = quads.joined(cpu, values) if self.name == "int8" else None
        return self.joined(values) if found is None else found

    def joined(self, values):
        """The words of activations as loaded, numbers or vectors."""
        word = None
        for part, value in enumerate(values):
            if self.group == 1:
                return value
            lanes = tir.lanes_of(value)
            value = value.astype(_typed("int32", lanes))
            word = word | value << tir.broadcast(tir.i32(part * self.bits), lanes) if part else value
        return word

    def weight_vector(self, loaded):
        """What ``multiply_add`` takes of weights as loaded."""
        return widened(loaded, tir.lanes_of(loaded)) if self.weight == "uint16" else loaded

    def together(self, cpu: Cpu) -> int:
        """Words of a row that are loaded at once, for products that take one of their lanes; else 1."""
        dots = quads.dots(cpu) if self.name == "int8" else self.group > 1 and pair_products(cpu)
        return neon.LANES if dots and neon.dots(cpu) else 1

    def words_at(self, x: tir.Buffer, place: list):
        """So many words of neighbours."""
        address = tirx.address_of(tirx.BufferLoad(x, place))
        return tirx.call_extern(f"int32x{neon.LANES}", f"sparsec_words_{self.bits}", address)

    def multiply_lane(self, lane: int, total, words, w):
        """``total`` and the products of one of the words that were loaded or looked up together."""
        name = "quad" if self.name == "int8" else "dot"
        return tirx.call_extern(total.ty, f"sparsec_{name}_{neon.LANES}_{lane}", total, words, w)

    def multiply_add(self, cpu: Cpu, total, x, w, each: bool = False):
        """``total`` and the products of one word.

        ``x`` is the same in all lanes, unless lanes have activations ``each`` of their own.
        """
        if self.group == 1:
            return total + x * w
        if self.name == "int8":
            return quads.multiply_add(cpu, total, x, w, each)
        if pair_products(cpu):
            lanes = tir.lanes_of(total)
            return tirx.call_extern(f"float32x{lanes}", f"sparsec_dot_{lanes}", total, x, w)
        for x_half, w_half in zip(halves(x), halves(w), strict=True):
            total = total + x_half * w_half
        return total


FLOAT32 = Element("float32", "float32", "float32")
BFLOAT16 = Element("bfloat16", "uint16", "int32", group=2)
BFLOAT16_WEIGHTS = Element("bfloat16 weights", "float32", "uint16")
INT8 = Element("int8", "uint8", "int32", group=4, sums="int32")
#: What only GPUs have: kernels that memory limits read 16 bits and compute in float32.
BFLOAT16_INPUTS = Element("bfloat16 inputs", "uint16", "float32")
FLOAT16_INPUTS = Element("float16 inputs", "uint16", "float32")
INPUTS = (BFLOAT16_INPUTS, FLOAT16_INPUTS)

#: Precision that is asked for, and the forms of ``form`` that have it; every other form stays float32.
#: Where lanes pick one input at a time, weights alone are narrow, which is what counts there: few rows meet
#: them, and memory limits.
PRECISIONS = {
    "float32": {},
    "bfloat16": {
        "dense": BFLOAT16,
        "shared": BFLOAT16,
        "words": BFLOAT16,
        "lanes": BFLOAT16_WEIGHTS,
        "gather": BFLOAT16_WEIGHTS,
    },
    "bfloat16 weights": dict.fromkeys(("dense", "shared", "lanes", "gather"), BFLOAT16_WEIGHTS),
    # No other form occurs: see ``stored_pattern``.
    "int8": dict.fromkeys(("dense", "shared", "words", "depthwise"), INT8),
    **{element.name: {"depthwise": element} for element in INPUTS},
}
#: Values of a word, at the precisions that have words.
_GROUPS = {element.name: element.group for element in (BFLOAT16, INT8)}


def element(precision: str, form: str) -> Element:
    """What a weight in the packed ``form`` is stored and multiplied as at ``precision``."""
    return PRECISIONS[precision].get(form, FLOAT32)


def form(precision: str, pattern: Pattern, channels: int) -> str:
    """``pattern.form``, or *words*: that of lanes which pick whole words out of a window."""
    group, packed = _GROUPS.get(precision, 1), pattern.form(channels)
    whole = packed == "lanes" and not pattern.scattered and pattern.window_slots % group == 0
    return "words" if whole and group > 1 else packed


def stored_pattern(precision: str, pattern: Pattern, channels: int, permute: bool = True) -> Pattern:
    """The pattern as which a weight is stored: int8 is dense where nothing picks whole words.

    A dense word meets four products; picking input by input takes as long as those.
    """
    kept = form(precision, pattern, channels) in ("shared", "words" if permute else None)
    return pattern if precision != INT8.name or kept and not pattern.scattered else DENSE


def pair_products(cpu: Cpu) -> bool:
    """Whether one instruction adds two products of bfloat16 to a sum, and one rounds: ``math.DOT_LANES``."""
    return cpu.name in math.DOT_LANES


def widened(stored, lanes: int = 1):
    """The float32 value of a bfloat16's bit pattern."""
    wide = stored.astype(_typed("int32", lanes)) << tir.broadcast(tir.i32(_BITS), lanes)
    return tirx.reinterpret(_typed("float32", lanes), wide)


def narrowed(value):
    """The bit pattern of the bfloat16 nearest to a float32 value."""
    return math.to_bfloat16(value)


def halves(words) -> list:
    """The two float32 values of each of a vector of words."""
    lanes = tir.lanes_of(words)
    low = words << tir.broadcast(tir.i32(_BITS), lanes)
    high = words & tir.broadcast(tir.i32(-1 << _BITS), lanes)
    return [tirx.reinterpret(_typed("float32", lanes), half) for half in (low, high)]


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


# NumPy's side -----------------------------------------------------------------------------------------


def to_int8(values: np.ndarray) -> np.ndarray:
    """``values`` as int8; ValueError where one is no such number."""
    stored = values.astype(np.int8)
    if not np.array_equal(stored, values):
        found = values[stored != values][0]
        raise ValueError(f"pack: required weights that are int8 numbers, found {found}; quantise them first")
    return stored


# LLVM's side ------------------------------------------------------------------------------------------

#: LLVM's feature of the x86 level with ``vdpbf16ps``.
_DOT_FEATURE = "+avx512bf16"

_WORD = """
define weak_odr i32 @sparsec_word_{bits}(ptr %from) alwaysinline {{
  %word = load i32, ptr %from, align {align}
  ret i32 %word
}}
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


def imported(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc:
    """``func`` with the functions that words and ``math.to_bfloat16`` call on ``cpu``, where it has such."""
    called = set()

    def visit(call):
        name = call.op.name if isinstance(call.op, ir.Op) else ""
        if name.endswith("call_extern"):
            called.add(call.args[0].value)
        elif name.endswith("to_bfloat16"):
            called.update(f"sparsec_narrow_{lanes}" for lanes in math.DOT_LANES.get(cpu.name, ()))

    tvm_ffi.structural_walk(func.body, (ir.Call, visit))
    text = "".join(
        _WORD.format(bits=e.bits, align=e.bits // 8)
        for e in (BFLOAT16, INT8)
        if f"sparsec_word_{e.bits}" in called
    )
    text += _PAIR if "sparsec_pair" in called else ""
    if _DOT_FEATURE in cpu.features and any(re.match("sparsec_(dot|narrow)", name) for name in called):
        text += "".join(_DOT.format(lanes=n, twice=2 * n, bits=32 * n) for n in math.DOT_LANES[cpu.name])
    text += quads.functions(cpu, called) + lane_words.functions(called) + neon.functions(cpu, called)
    if not text:
        return func
    body = tirx.AttrStmt(tir.i32(0), "pragma_import_llvm", ir.StringImm(text), func.body)
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)
