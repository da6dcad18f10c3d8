"""Products of int8: four of uint8 activations and int8 weights in a word, exact in int32 on every CPU.

``vpdpbusd`` (AVX512-VNNI, AVX-VNNI) adds the four products to a sum.  Without it, x86 widens even and odd
bytes to 16 bits and multiplies pairs (``vpmaddwd``); ``vpmaddubsw`` would saturate for weights of 8 bits.
aarch64 has ``sudot`` (i8mm) for it; ``sdot`` (dotprod) multiplies signed bytes, so activations lose 128, and
sums begin with 128 times the sum of their weights (``weight_sum``).  Other CPUs multiply one byte after the
other.

Of a weight whose pattern panels share, 16 neighbouring inputs, a *window*, give whole words where the
pattern is 2:4, 1:4, 2:8, 4:16 or the like.  A byte shuffle of the window picks them; so what is stored of the
positions is a word of four choices for each word of weights.  Of other patterns inputs are picked one by one.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from sparsec.schedules import neon, tir
from sparsec.schedules.layout import WINDOW, Pattern
from sparsec.schedules.target import Cpu

GROUP, BYTE = 4, 8
#: ``signed`` products lack 2 to this power times the other factor.
SIGNED_BITS = BYTE - 1
#: LLVM's features of levels with ``vpdpbusd``.
VNNI = ("+avx512vnni", "+avxvnni")


# Products ---------------------------------------------------------------------------------------------


def part(word, which, lanes: int = 1):
    """Value ``which`` of a word of weights, with its sign."""
    up = tir.i32(32 - BYTE) - which * tir.i32(BYTE)
    return (word << tir.broadcast(up, lanes)) >> tir.broadcast(tir.i32(32 - BYTE), lanes)


def dots(cpu: Cpu) -> bool:
    """Whether one instruction adds four products to a sum."""
    return neon.dots(cpu) or bool(set(VNNI) & set(cpu.features))


def signed(cpu: Cpu) -> bool:
    """Whether what is multiplied of activations is 128 less than they are."""
    return neon.signed(cpu)


def parts(cpu: Cpu) -> int:
    """Registers that a vector of weights fills while it is multiplied."""
    if dots(cpu):
        return 1
    return 2 if _x86(cpu) else GROUP


def multiply_add(cpu: Cpu, total, x, w, each: bool = False):
    """``total`` and the four products of each lane; ``x`` holds activations, ``w`` weights.

    ``x`` is the same in all lanes, unless lanes have activations ``each`` of their own, made by ``joined``.
    """
    lanes = tir.lanes_of(total)
    if _x86_vectors(cpu, lanes) or neon.dots(cpu) and lanes == (neon.BYTES if each else neon.LANES):
        return tirx.call_extern(f"int32x{lanes}", f"sparsec_quad_{lanes}", total, x, w)
    low = tir.broadcast(tir.i32(0xFF), lanes)
    for which in range(GROUP):
        activation = (x >> tir.broadcast(tir.i32(which * BYTE), lanes)) & low
        total = total + activation * part(w, tir.i32(which), lanes)
    return total


def weight_sum(cpu: Cpu, total, w, each: bool = False):
    """``total`` and the sum of the weights of each lane; ``each`` as in ``multiply_add``."""
    # A word that is the same in all lanes loses 128 there.
    ones = tir.i32(0x01010101 ^ signs() if signed(cpu) and not each else 0x01010101)
    return multiply_add(cpu, total, tir.broadcast(ones, tir.lanes_of(total)), w, each)


def columns_lanes(cpu: Cpu, channels: int) -> int:
    """Lanes of a vector of words that neighbouring columns of so many ``channels`` are joined to."""
    return neon.BYTES if neon.dots(cpu) and channels >= neon.BYTES else cpu.lanes


def joined(cpu: Cpu, columns: list):
    """The words of vectors of bytes, less 128 where ``signed``; None where nothing joins so many lanes."""
    if not neon.dots(cpu) or tir.lanes_of(columns[0]) != neon.BYTES:
        return None
    short = GROUP - len(columns)  # whatever is behind the last column meets weights of 0
    return tirx.call_extern(f"int32x{neon.BYTES}", "sparsec_joined_16", *columns, *[columns[-1]] * short)


def multiply_weights(cpu: Cpu, total, w, x):
    """``total`` and the products of weights of uint8, less 128 where ``signed``, with int8 activations.

    For CPUs with ``dots``; ``x`` is the same in all lanes.
    """
    lanes = tir.lanes_of(total)
    name = f"sparsec_quad_{lanes}" if _x86(cpu) else f"sparsec_bytes_{lanes}"
    return tirx.call_extern(f"int32x{lanes}", name, total, w, x)


def in_registers(cpu: Cpu, lanes: int) -> bool:
    """Whether the level has instructions for the products of a vector of words."""
    return _x86_vectors(cpu, lanes) or neon.dots(cpu) and lanes == neon.LANES


def _x86(cpu: Cpu) -> bool:
    return cpu.triple.startswith("x86_64")


def _x86_vectors(cpu: Cpu, lanes: int) -> bool:
    return _x86(cpu) and lanes <= cpu.lanes and lanes in _LANES


def signs(values: int = GROUP) -> int:
    """What turns ``values`` bytes of a word into themselves less 128, as int8."""
    return int(np.array(0x80808080 >> (GROUP - values) * BYTE, np.uint32).view(np.int32))


# Positions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Where the words of a shared pattern of ``channels`` inputs are picked from: ``per_window`` of each."""

    kept: int
    channels: int
    per_window: int

    @property
    def words(self) -> int:
        return -(-self.kept // GROUP)

    @property
    def whole(self) -> int:
        """Words of whole windows; those behind them are picked from the last 16 inputs."""
        return self.channels // WINDOW * self.per_window

    def start(self, word):
        """The first input of the window of a word: a number, an array, or an expression."""
        last = self.channels - WINDOW
        if isinstance(word, int | np.ndarray):
            return np.minimum(word // self.per_window * WINDOW, last)
        return tirx.min(tirx.floordiv(word, tir.i64(self.per_window)) * WINDOW, tir.i64(last))

    def choices(self, positions: np.ndarray) -> np.ndarray:
        """int32 words of four bytes ``position - start``, from positions ``[..., 4 * words]``."""
        inside = positions.reshape(*positions.shape[:-1], -1, GROUP) - self._starts()
        return np.ascontiguousarray(inside.astype(np.uint8)).view(np.int32)[..., 0]

    def positions(self, choices: np.ndarray) -> np.ndarray:
        """``choices``, undone."""
        inside = np.ascontiguousarray(choices)[..., None].view(np.uint8).astype(np.int64)
        return (inside + self._starts()).reshape(*choices.shape[:-1], -1)

    def _starts(self) -> np.ndarray:
        return self.start(np.arange(self.words))[:, None]

    def channel(self, choices, at: tuple, slot):
        """The input that stored value ``slot`` multiplies, as definitions write it."""
        word = choices[(*at, slot // GROUP)].astype("int64")
        return self.start(slot // GROUP) + ((word >> (slot % GROUP * BYTE)) & tir.i64(WINDOW - 1))

    # Several words at once: a shuffle for each vector of inputs, merged into one vector of words.

    def loads(self, cpu: Cpu, lanes: int, word: int) -> int:
        """Vectors of inputs that fill the most of a vector of words from ``word`` on."""
        most = GROUP if _x86_vectors(cpu, lanes) else 0
        if cpu.triple.startswith("aarch64") and lanes == neon.LANES:
            most = neon.TABLE
        return min(most, GROUP // self.per_window, (self.whole - word) // self.span(lanes, 1))

    def span(self, lanes: int, loads: int) -> int:
        """Words that so many vectors of inputs give."""
        return lanes // GROUP * self.per_window * loads

    def place(self, lanes: int, window: int, load: int, part: int) -> tuple[int, int]:
        """Where word ``part`` of a window in vector ``load`` of inputs comes from, and its lane."""
        word = (lanes // GROUP * load + window) * self.per_window + part
        return word, window * GROUP + load * self.per_window + part

    def choices_at(self, words: tir.Buffer, index: list, lanes: int, loads: int):
        """The choices of ``span`` words from ``index`` on, each in its lane."""
        name = f"sparsec_choices_{self.per_window}_{loads}_{lanes}"
        return tirx.call_extern(f"int32x{lanes}", name, tirx.address_of(tir.load(words, *index)))

    def picked(self, x: tir.Buffer, index: list, choices, lanes: int, loads: int):
        """The words that ``choices`` name of the inputs from ``index`` on, each in its lane."""
        name = f"sparsec_picked_{self.per_window}_{loads}_{lanes}"
        return tirx.call_extern(f"int32x{lanes}", name, tirx.address_of(tir.load(x, *index)), choices)

    def picked_singly(self, x: tir.Buffer, at: Callable, start, choice):
        """The word that ``choice`` names of the window from input ``start`` on; ``at(c)`` is in ``x``."""
        word = tir.i32(0)
        for which in range(GROUP):
            inside = (choice >> tir.i32(which * BYTE)) & tir.i32(WINDOW - 1)
            byte = tirx.BufferLoad(x, at(start + inside.astype("int64"))).astype("int32")
            word = word | byte << tir.i32(which * BYTE)
        return word


@functools.cache
def windows_of(pattern: Pattern, channels: int) -> Windows | None:
    """The windows of a shared pattern, where each gives whole words; else None."""
    if pattern.form(channels) != "shared" or channels < WINDOW or WINDOW % pattern.m:
        return None
    words, rest = divmod(WINDOW // pattern.m * pattern.n, GROUP)
    return None if rest else Windows(pattern.kept(channels), channels, words)


# LLVM's side ------------------------------------------------------------------------------------------

_DOT = """
declare <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32>, <{bytes} x i8>, <{bytes} x i8>)
define weak_odr <{n} x i32> @sparsec_quad_{n}(
  <{n} x i32> %sum, <{n} x i32> %x, <{n} x i32> %w) alwaysinline {{
  %a = bitcast <{n} x i32> %x to <{bytes} x i8>
  %b = bitcast <{n} x i32> %w to <{bytes} x i8>
  %dot = call <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(
    <{n} x i32> %sum, <{bytes} x i8> %a, <{bytes} x i8> %b)
  ret <{n} x i32> %dot
}}
"""

_HALVES = """
declare <{n} x i32> @llvm.x86.{pmaddwd}(<{twice} x i16>, <{twice} x i16>)
define weak_odr <{n} x i32> @sparsec_quad_{n}(
  <{n} x i32> %sum, <{n} x i32> %x, <{n} x i32> %w) alwaysinline {{
  %a = bitcast <{n} x i32> %x to <{twice} x i16>
  %b = bitcast <{n} x i32> %w to <{twice} x i16>
  %a0 = and <{twice} x i16> %a, splat (i16 255)
  %a1 = lshr <{twice} x i16> %a, splat (i16 8)
  %up = shl <{twice} x i16> %b, splat (i16 8)
  %b0 = ashr <{twice} x i16> %up, splat (i16 8)
  %b1 = ashr <{twice} x i16> %b, splat (i16 8)
  %even = call <{n} x i32> @llvm.x86.{pmaddwd}(<{twice} x i16> %a0, <{twice} x i16> %b0)
  %odd = call <{n} x i32> @llvm.x86.{pmaddwd}(<{twice} x i16> %a1, <{twice} x i16> %b1)
  %some = add <{n} x i32> %sum, %even
  %all = add <{n} x i32> %some, %odd
  ret <{n} x i32> %all
}}
"""

#: Lanes -> the instructions that a level with vectors of so many has.
_LANES = {
    16: {"pmaddwd": "avx512.pmaddw.d.512", "pshufb": "avx512.pshuf.b.512"},
    8: {"pmaddwd": "avx2.pmadd.wd", "pshufb": "avx2.pshuf.b"},
    4: {"pmaddwd": "sse2.pmadd.wd", "pshufb": "ssse3.pshuf.b.128"},
}


def functions(cpu: Cpu, called: Set[str]) -> str:
    """LLVM's text of those functions of this file that are ``called``."""
    product = _DOT if dots(cpu) else _HALVES
    text, shuffles = "", set()
    for name in sorted(called):
        kind, *numbers = name.removeprefix("sparsec_").split("_")
        if kind == "quad" and _x86(cpu):
            (n,) = map(int, numbers)
            text += product.format(n=n, twice=2 * n, bytes=4 * n, bits=32 * n, **_LANES[n])
        elif kind in ("choices", "picked"):
            per_window, loads, lanes = map(int, numbers)
            windows = Windows(0, WINDOW, per_window)
            if kind == "choices":
                text += _choices(name, windows, loads, lanes, 0 if _x86(cpu) else WINDOW)
            elif _x86(cpu):
                text += _picked(name, windows, loads, lanes)
                shuffles.add(lanes)
    for n in sorted(shuffles):
        text += f"declare <{4 * n} x i8> {_shuffle(n)}(<{4 * n} x i8>, <{4 * n} x i8>)\n"
    return text


def _shuffle(n: int) -> str:
    return f"@llvm.x86.{_LANES[n]['pshufb']}"


def _choices(name: str, windows: Windows, loads: int, n: int, apart: int) -> str:
    """Vectors of inputs are ``apart`` in what bytes are looked up in; 0 if they are looked up one by one."""
    words, lanes, starts = windows.span(n, loads), ["poison"] * n, ["0"] * n
    for at in _places(windows, loads, n):
        word, lane = windows.place(n, *at)
        lanes[lane] = str(word)
        starts[lane] = str(0x01010101 * apart * at[1])
    order, starts = (", ".join(f"i32 {value}" for value in values) for values in (lanes, starts))
    return f"""
define weak_odr <{n} x i32> @{name}(ptr %from) alwaysinline {{
  %words = load <{words} x i32>, ptr %from, align 4
  %lanes = shufflevector <{words} x i32> %words, <{words} x i32> poison, <{n} x i32> <{order}>
  %places = or <{n} x i32> %lanes, <{starts}>
  ret <{n} x i32> %places
}}
"""


def _picked(name: str, windows: Windows, loads: int, n: int) -> str:
    size = 4 * n
    text = f"""
define weak_odr <{n} x i32> @{name}(ptr %from, <{n} x i32> %lanes) alwaysinline {{
  %choices = bitcast <{n} x i32> %lanes to <{size} x i8>
"""
    for load in range(loads):
        own = {windows.place(n, *at)[1] for at in _places(windows, loads, n) if at[1] == load}
        mask = ", ".join(f"i1 {int(byte // 4 in own)}" for byte in range(size))
        before = f"%words{load - 1}" if load else "poison"
        text += f"""  %at{load} = getelementptr i8, ptr %from, i64 {load * size}
  %inputs{load} = load <{size} x i8>, ptr %at{load}, align 1
  %each{load} = call <{size} x i8> {_shuffle(n)}(<{size} x i8> %inputs{load}, <{size} x i8> %choices)
  %words{load} = select <{size} x i1> <{mask}>, <{size} x i8> %each{load}, <{size} x i8> {before}
"""
    return f"""{text}  %result = bitcast <{size} x i8> %words{loads - 1} to <{n} x i32>
  ret <{n} x i32> %result
}}
"""


def _places(windows: Windows, loads: int, lanes: int) -> Iterable[tuple[int, int, int]]:
    """(window, load, part) of every word."""
    return itertools.product(range(lanes // GROUP), range(loads), range(windows.per_window))
