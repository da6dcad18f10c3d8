"""Words that each lane picks for itself: the *lanes* form of ``layout`` in pairs and quads, on x86.

A window of 16 inputs is loaded and a shuffle puts into each lane the two bfloat16 or four bytes that its output
channel kept.  So a word costs a shuffle and a product.  Its choices, four bits each, are taken apart once for
all rows of a tile.

bfloat16 takes AVX-512's permute of 16-bit values; levels without it shuffle bytes, within 16 of them: all
choices of a word are in one half of the window, or the word is put together from both.
"""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from sparsec.schedules import pairs, tir
from sparsec.schedules.layout import PER_WORD, WINDOW, Pattern, choice_words, choices_of
from sparsec.schedules.target import Cpu

QUAD, PAIR, PAIR_BYTES, HALF_BYTES, PERMUTED, PERMUTED_TWO, EIGHT = (
    f"sparsec_{name}_"
    for name in ("quads", "pairs", "pair_bytes", "half_bytes", "permuted", "permuted_two", "eight")
)


def joined(words: np.ndarray, group: int) -> np.ndarray:
    """Choices ``[..., slots, 2]`` of single values as ``[..., slots / group, 2 * group]`` of words."""
    *outer, slots, _ = words.shape
    choices = choices_of(words)[..., 0].reshape(*outer, slots // group, group, -1)
    return choice_words(choices.swapaxes(-1, -2))


def split(words: np.ndarray, group: int) -> np.ndarray:
    """``joined``, undone."""
    choices = choices_of(words).swapaxes(-1, -2)
    return choice_words(choices.reshape(*words.shape[:-2], words.shape[-2] * group, -1, 1))


@dataclass(frozen=True)
class Picking:
    """Words of ``group`` values of ``pattern``, picked by ``lanes`` lanes at once out of ``channels`` inputs."""

    cpu: Cpu
    group: int
    lanes: int
    pattern: Pattern
    channels: int

    @property
    def _permutes(self) -> bool:
        return self.group == 2 and self.cpu.lanes == WINDOW

    @property
    def _halves(self) -> bool:
        """Whether each word is picked from one half of the window."""
        return self.pattern.m <= WINDOW // 2 and self._per_window % 2 == 0

    @property
    def _per_window(self) -> int:
        return self.pattern.window_slots // self.group

    def choices(self, words: tir.Buffer, index: list, lane: int):
        """What the lanes from ``lane`` on choose: a vector for ``words``; ``index`` ends with the word's."""
        if self.group == 4:
            kind = QUAD
        elif self._permutes:
            kind = PAIR
        else:
            kind = HALF_BYTES if self._halves else PAIR_BYTES
        at = tir.load(words, *index, tir.i64(lane * self.group // PER_WORD))
        chosen = tirx.call_extern(f"int32x{self.lanes}", f"{kind}{self.lanes}", tirx.address_of(at))
        if not self._wide:
            return chosen
        upper = (self._window(index[-1]) - self._first_of_two(index[-1])).astype("int32")
        return chosen + tir.broadcast(upper * tir.i32(0x00010001), self.lanes)

    def words(self, x: tir.Buffer, at, word, choices):
        """Word ``word`` of every lane; ``at(c)`` are the coordinates in ``x`` of input ``c``."""

        def address(start):
            return tirx.address_of(tirx.BufferLoad(x, at(start)))

        window = self._window(word)
        if self._permutes:
            kind, start = (PERMUTED_TWO, self._first_of_two(word)) if self._wide else (PERMUTED, window)
            return tirx.call_extern(f"int32x{self.lanes}", f"{kind}{self.lanes}", address(start), choices)
        upper = window + WINDOW // 2
        if self._halves:
            half = tirx.floormod(word, tir.i64(self._per_window)) >= self._per_window // 2
            window = tirx.Select(half, upper, window)
            if self.group == 4:
                return tirx.call_extern(f"int32x{self.lanes}", f"{EIGHT}{self.lanes}", address(window), choices)
        if self.group == 4 or self._halves:
            return pairs.pick(address(window), choices)
        # A byte shuffle gives 0 where the upper bit of a choice is set.
        low = choices + self._each(0x70)
        high = (choices ^ self._each(0x10)) + self._each(0x70)
        return pairs.pick(address(window), low) | pairs.pick(address(upper), high)

    @property
    def _wide(self) -> bool:
        """Whether a permute takes two windows as they lie in memory, which costs less than one twice."""
        return self._permutes and self.lanes == WINDOW and self.channels >= 2 * WINDOW

    def _window(self, word):
        return tirx.floordiv(word, tir.i64(self._per_window)) * WINDOW

    def _first_of_two(self, word):
        """The start of the two windows of which one is that of ``word``."""
        last = self.channels // WINDOW * WINDOW - 2 * WINDOW
        two = tirx.floordiv(word, tir.i64(2 * self._per_window)) * (2 * WINDOW)
        return tirx.min(two, tir.i64(last))

    def _each(self, byte: int):
        return tir.broadcast(tir.i32(byte * 0x01010101), self.lanes)


# LLVM's side ------------------------------------------------------------------------------------------

_BYTES = """
define weak_odr <{n} x i32> @{name}(ptr %from) alwaysinline {{
  %stored = load <{n} x i8>, ptr %from, align 1
  %low = zext <{n} x i8> %stored to <{n} x i32>
  %up = shl <{n} x i32> %low, splat (i32 12)
  %both = or <{n} x i32> %low, %up
  %own = and <{n} x i32> %both, splat (i32 {mask})
  %halves = bitcast <{n} x i32> %own to <{twice} x i16>
  %doubled = mul <{twice} x i16> %halves, splat (i16 514)
  %bytes = add <{twice} x i16> %doubled, splat (i16 256)
  %choices = bitcast <{twice} x i16> %bytes to <{n} x i32>
  ret <{n} x i32> %choices
}}
"""

_PERMUTED = """
declare <{twice} x i16> @llvm.x86.avx512.permvar.hi.{bits}(<{twice} x i16>, <{twice} x i16>)
define weak_odr <{n} x i32> @{name}(ptr %from, <{n} x i32> %choices) alwaysinline {{WINDOW
  %which = bitcast <{n} x i32> %choices to <{twice} x i16>
  %picked = call <{twice} x i16> @llvm.x86.avx512.permvar.hi.{bits}(<{twice} x i16> %inputs, <{twice} x i16> %which)
  %words = bitcast <{twice} x i16> %picked to <{n} x i32>
  ret <{n} x i32> %words
}}
"""

_FUNCTIONS = {
    QUAD: """
define weak_odr <{n} x i32> @{name}(ptr %from) alwaysinline {{
  %stored = load <{twice} x i8>, ptr %from, align 1
  %low = zext <{twice} x i8> %stored to <{twice} x i16>
  %up = shl <{twice} x i16> %low, splat (i16 4)
  %both = or <{twice} x i16> %low, %up
  %own = and <{twice} x i16> %both, splat (i16 3855)
  %choices = bitcast <{twice} x i16> %own to <{n} x i32>
  ret <{n} x i32> %choices
}}
""",
    PAIR: """
define weak_odr <{n} x i32> @{name}(ptr %from) alwaysinline {{
  %stored = load <{n} x i8>, ptr %from, align 1
  %low = zext <{n} x i8> %stored to <{n} x i32>
  %up = shl <{n} x i32> %low, splat (i32 12)
  %both = or <{n} x i32> %low, %up
  %choices = and <{n} x i32> %both, splat (i32 983055)
  ret <{n} x i32> %choices
}}
""",
    PAIR_BYTES: _BYTES.replace("{mask}", str(0x000F000F)),
    HALF_BYTES: _BYTES.replace("{mask}", str(0x00070007)),
    PERMUTED: _PERMUTED.replace("WINDOW", """
  %window = load <16 x i16>, ptr %from, align 2
  %inputs = shufflevector <16 x i16> %window, <16 x i16> poison, <{twice} x i32> <{order}>"""),
    PERMUTED_TWO: _PERMUTED.replace("WINDOW", """
  %inputs = load <32 x i16>, ptr %from, align 2"""),
    EIGHT: """
declare {bytes} @llvm.x86.{shuffle}({bytes}, {bytes})
define weak_odr <{n} x i32> @{name}(ptr %from, <{n} x i32> %choices) alwaysinline {{
  %window = load i64, ptr %from, align 1
  %first = insertelement <{half} x i64> poison, i64 %window, i32 0
  %every = shufflevector <{half} x i64> %first, <{half} x i64> poison, <{half} x i32> zeroinitializer
  %inputs = bitcast <{half} x i64> %every to {bytes}
  %which = bitcast <{n} x i32> %choices to {bytes}
  %picked = call {bytes} @llvm.x86.{shuffle}({bytes} %inputs, {bytes} %which)
  %words = bitcast {bytes} %picked to <{n} x i32>
  ret <{n} x i32> %words
}}
""",
}


def functions(called: Set[str]) -> str:
    """LLVM's text of those functions of this file that are ``called``."""
    text = ""
    for name in sorted(called):
        kind, _, n = name.rpartition("_")
        if template := _FUNCTIONS.get(f"{kind}_"):
            twice = 2 * int(n)
            order = ", ".join(f"i32 {i % WINDOW}" for i in range(twice))
            text += template.format(
                name=name,
                n=n,
                half=twice // 4,
                twice=twice,
                bits=16 * twice,
                bytes=f"<{2 * twice} x i8>",
                order=order,
                shuffle=pairs.SHUFFLES[int(n)],
            )
    return text
