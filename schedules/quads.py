"""Products of int8: four of uint8 activations and int8 weights in a word, exact in int32 on every CPU.

``vpdpbusd`` (AVX512-VNNI, AVX-VNNI) adds the four products to a sum.  Without it, x86 widens even and odd
bytes to 16 bits and multiplies pairs (``vpmaddwd``); ``vpmaddubsw`` would saturate for weights of 8 bits.
Other CPUs multiply one byte after the other.

Of a weight whose pattern panels share, four kept inputs lie within a *window* of 16 neighbours where the
pattern is 2:4, 1:4, 2:8, 4:16 or the like.  A shuffle of the window gives the word, in all lanes at once; so
what is stored of the positions is one word of four choices, each a byte.  Of wider patterns inputs are picked
one by one.
"""

import functools
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.layout import WINDOW, Pattern
from sparsec.schedules.target import Cpu

GROUP, BYTE = 4, 8
#: LLVM's features of levels with ``vpdpbusd``.
VNNI = ("+avx512vnni", "+avxvnni")


# Products ---------------------------------------------------------------------------------------------


def part(word, which, lanes: int = 1):
    """Value ``which`` of a word of weights, with its sign."""
    up = tir.i32(32 - BYTE) - which * tir.i32(BYTE)
    return (word << tir.broadcast(up, lanes)) >> tir.broadcast(tir.i32(32 - BYTE), lanes)


def parts(cpu: Cpu) -> int:
    """Registers that a vector of weights fills while it is multiplied."""
    if set(VNNI) & set(cpu.features):
        return 1
    return 2 if _x86(cpu) else GROUP


def multiply_add(cpu: Cpu, total, x, w):
    """``total`` and the four products of each lane; ``x`` holds activations, ``w`` weights."""
    lanes = tir.lanes_of(total)
    if _in_registers(cpu, lanes):
        return tirx.call_extern(f"int32x{lanes}", f"sparsec_quad_{lanes}", total, x, w)
    low = tir.broadcast(tir.i32(0xFF), lanes)
    for which in range(GROUP):
        activation = (x >> tir.broadcast(tir.i32(which * BYTE), lanes)) & low
        total = total + activation * part(w, tir.i32(which), lanes)
    return total


def _x86(cpu: Cpu) -> bool:
    return cpu.triple.startswith("x86_64")


def _in_registers(cpu: Cpu, lanes: int) -> bool:
    return _x86(cpu) and lanes <= cpu.lanes and lanes in _LANES


# Positions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Where the words of a shared pattern of ``channels`` inputs are picked from."""

    pattern: Pattern
    channels: int

    @property
    def words(self) -> int:
        return -(-self.pattern.kept(self.channels) // GROUP)

    def start(self, word):
        """The first input of the window of a word: a number, an array, or an expression."""
        n, m = self.pattern.n, self.pattern.m
        groups, slot, last = self.channels // m, word * GROUP, self.channels - WINDOW
        if isinstance(word, int | np.ndarray):
            return np.minimum(np.where(slot < groups * n, slot // n * m, slot + groups * (m - n)), last)
        # Words whose window must not pass the end come last; a kernel writes them out.
        return tirx.floordiv(slot, tir.i64(n)) * tir.i64(m)

    @property
    def plain(self) -> int:
        """Words whose start is that of their group of ``m``, without another look."""
        word = np.arange(self.words)
        return int((self.start(word) == word * GROUP // self.pattern.n * self.pattern.m).cumprod().sum())

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
        first = slot // GROUP * GROUP
        groups, n, m = self.channels // self.pattern.m, self.pattern.n, self.pattern.m
        start = tirx.Select(first < groups * n, first // n * m, first + groups * (m - n))
        start = tirx.min(start, tir.i64(self.channels - WINDOW))
        return start + ((word >> (slot % GROUP * BYTE)) & tir.i64(WINDOW - 1))

    def picked(self, cpu: Cpu, x: tir.Buffer, at, start, choice, lanes: int):
        """The word that ``choice`` (int32) names of the window from input ``start`` on, in every lane.

        ``at(c)`` are the coordinates of input ``c`` in ``x``.
        """
        if _in_registers(cpu, lanes):
            first = tirx.address_of(tirx.BufferLoad(x, at(start)))
            return tirx.call_extern(
                f"int32x{lanes}", f"sparsec_pick_{lanes}", first, tir.broadcast(choice, lanes)
            )
        word = tir.i32(0)
        for which in range(GROUP):
            inside = (choice >> tir.i32(which * BYTE)) & tir.i32(WINDOW - 1)
            byte = tirx.BufferLoad(x, at(start + inside.astype("int64"))).astype("int32")
            word = word | byte << tir.i32(which * BYTE)
        return word


@functools.cache
def windows_of(pattern: Pattern, channels: int) -> Windows | None:
    """The windows of a shared pattern, where every word lies in one; else None."""
    if pattern.form(channels) != "shared" or channels < WINDOW:
        return None
    found, n, m = Windows(pattern, channels), pattern.n, pattern.m
    whole = channels // m
    last = np.minimum(np.arange(found.words) * GROUP + GROUP, pattern.kept(channels)) - 1
    last = np.where(last < whole * n, last // n * m + m - 1, last + whole * (m - n))
    return found if (last - found.start(np.arange(found.words)) < WINDOW).all() else None


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

_PICK = """
declare <{bytes} x i8> @llvm.x86.{pshufb}(<{bytes} x i8>, <{bytes} x i8>)
define weak_odr <{n} x i32> @sparsec_pick_{n}(ptr %from, <{n} x i32> %choice) alwaysinline {{
  %window = load <16 x i8>, ptr %from, align 1
  %every = shufflevector <16 x i8> %window, <16 x i8> poison, <{bytes} x i32> <{copies}>
  %which = bitcast <{n} x i32> %choice to <{bytes} x i8>
  %picked = call <{bytes} x i8> @llvm.x86.{pshufb}(<{bytes} x i8> %every, <{bytes} x i8> %which)
  %word = bitcast <{bytes} x i8> %picked to <{n} x i32>
  ret <{n} x i32> %word
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
    product = _DOT if set(VNNI) & set(cpu.features) else _HALVES
    text = ""
    for lanes, names in _LANES.items():
        copies = ", ".join(f"i32 {lane % WINDOW}" for lane in range(GROUP * lanes))
        filled = {"n": lanes, "twice": 2 * lanes, "bytes": 4 * lanes, "bits": 32 * lanes, "copies": copies}
        for name, form in (("quad", product), ("pick", _PICK)):
            if f"sparsec_{name}_{lanes}" in called:
                text += form.format(**filled, **names)
    return text
