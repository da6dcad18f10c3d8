"""Words that each lane picks for itself: the *lanes* form of ``layout`` in pairs and quads, on x86.

A shuffle puts into each lane the two bfloat16 or four bytes of a window that its output channel kept, so a
word costs a shuffle and a product, at best three quarters of the rate of products alone.  AVX-512 permutes
bfloat16 as they lie in memory.  A byte shuffle chooses from 8 or 16 bytes that are in every quarter of a
vector: 8 are while they are loaded, 16 take nearly as long as a product.  Choices, four bits each, are taken
apart beforehand.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from sparsec.schedules import pairs, tir
from sparsec.schedules.layout import PER_WORD, WINDOW, Pattern, choice_words, choices_of
from sparsec.schedules.target import Cpu

PAIR, QUAD = 2, 4
_UNPACKED, _PERMUTED = "sparsec_unpacked_", "sparsec_permuted_"


def joined(words: np.ndarray, group: int) -> np.ndarray:
    """Choices ``[..., slots, 2]`` of single values as ``[..., slots / group, 2 * group]`` of words."""
    *outer, slots, _ = words.shape
    choices = choices_of(words)[..., 0].reshape(*outer, slots // group, group, -1)
    return choice_words(choices.swapaxes(-1, -2))


def split(words: np.ndarray, group: int) -> np.ndarray:
    """``joined``, undone."""
    choices = choices_of(words).swapaxes(-1, -2)
    return choice_words(choices.reshape(*words.shape[:-2], words.shape[-2] * group, -1, 1))


def reach(pattern: Pattern, group: int) -> int:
    """Neighbouring inputs from which a word of ``group`` values is picked; a divisor of a window."""
    if pattern.n % group and group % pattern.n:
        return WINDOW
    return pattern.m * max(1, group // pattern.n)


@dataclass(frozen=True)
class Picking:
    """Words of ``group`` values of ``pattern``, picked by ``lanes`` at once out of ``channels`` inputs."""

    cpu: Cpu
    group: int
    lanes: int
    pattern: Pattern
    channels: int

    def choices(self, words: tir.Buffer, index: list, lane: int):
        """What ``words`` takes: the choices of the lanes from ``lane`` on; ``index`` ends with the word."""
        at = tir.load(words, *index, tir.i64(lane * self.group // PER_WORD))
        chosen = self._call(f"{_UNPACKED}{self.group}", tirx.address_of(at))
        if self._two:
            upper = (self._window(index[-1]) - self._first_of_two(index[-1])).astype("int32")
            return chosen + tir.broadcast(upper * tir.i32(0x00010001), self.lanes)
        if self.group == QUAD or self._permutes:
            return chosen
        # Two bytes for each bfloat16, of 16 bytes if no more are within reach.
        if self._reach < WINDOW:
            chosen = chosen & self._each(0x00070007)
        doubled = (chosen << self._each(1)) | (chosen << self._each(9))
        return doubled + self._each(0x01000100)

    def words(self, x: tir.Buffer, at: Callable, word, choices):
        """Word ``word`` of every lane; ``at(c)`` are the coordinates in ``x`` of input ``c``."""

        def address(start):
            return tirx.address_of(tirx.BufferLoad(x, at(start)))

        if self._two:
            return self._call(f"{_PERMUTED}{2 * WINDOW}", address(self._first_of_two(word)), choices)
        if self._permutes:
            return self._call(f"{_PERMUTED}{WINDOW}", address(self._window(word)), choices)
        each = tir.i64(self._per_window * self._reach // WINDOW)
        start = tirx.floordiv(word, each) * self._reach
        size = max(8, QUAD // self.group * self._reach)
        if size <= 16:
            return pairs.pick(address(start), choices, size)
        # A byte shuffle gives 0 where the upper bit of a choice is set.
        low = choices + self._each(0x70707070)
        high = (choices ^ self._each(0x10101010)) + self._each(0x70707070)
        return pairs.pick(address(start), low) | pairs.pick(address(start + WINDOW // 2), high)

    @property
    def _permutes(self) -> bool:
        return self.group == PAIR and self.cpu.lanes == WINDOW

    @property
    def _two(self) -> bool:
        """Whether a permute takes two windows as they lie in memory: one would have to be put there twice."""
        return self._permutes and self.lanes == WINDOW and self.channels >= 2 * WINDOW

    @property
    def _reach(self) -> int:
        return reach(self.pattern, self.group)

    @property
    def _per_window(self) -> int:
        return self.pattern.window_slots // self.group

    def _window(self, word):
        return tirx.floordiv(word, tir.i64(self._per_window)) * WINDOW

    def _first_of_two(self, word):
        """The start of the two windows of which one is that of ``word``."""
        last = self.channels // WINDOW * WINDOW - 2 * WINDOW
        two = tirx.floordiv(word, tir.i64(2 * self._per_window)) * (2 * WINDOW)
        return tirx.min(two, tir.i64(last))

    def _call(self, name: str, *args):
        return tirx.call_extern(f"int32x{self.lanes}", f"{name}_{self.lanes}", *args)

    def _each(self, value: int):
        return tir.broadcast(tir.i32(value), self.lanes)


# LLVM's side ------------------------------------------------------------------------------------------

_PAIRS = """
define weak_odr <{n} x i32> @{name}(ptr %from) alwaysinline {{
  %stored = load <{n} x i8>, ptr %from, align 1
  %low = zext <{n} x i8> %stored to <{n} x i32>
  %up = shl <{n} x i32> %low, splat (i32 12)
  %both = or <{n} x i32> %low, %up
  %choices = and <{n} x i32> %both, splat (i32 u0x000F000F)
  ret <{n} x i32> %choices
}}
"""

_QUADS = """
define weak_odr <{n} x i32> @{name}(ptr %from) alwaysinline {{
  %stored = load <{twice} x i8>, ptr %from, align 1
  %low = zext <{twice} x i8> %stored to <{twice} x i16>
  %up = shl <{twice} x i16> %low, splat (i16 4)
  %both = or <{twice} x i16> %low, %up
  %own = and <{twice} x i16> %both, splat (i16 u0x0F0F)
  %choices = bitcast <{twice} x i16> %own to <{n} x i32>
  ret <{n} x i32> %choices
}}
"""

_PERMUTE = """
declare <{twice} x i16> @llvm.x86.avx512.permvar.hi.{bits}(<{twice} x i16>, <{twice} x i16>)
define weak_odr <{n} x i32> @{name}(ptr %from, <{n} x i32> %choices) alwaysinline {{
  %window = load <{window} x i16>, ptr %from, align 2
  %inputs = shufflevector <{window} x i16> %window, <{window} x i16> poison, <{twice} x i32> <{order}>
  %which = bitcast <{n} x i32> %choices to <{twice} x i16>
  %picked = call <{twice} x i16> @llvm.x86.avx512.permvar.hi.{bits}(
    <{twice} x i16> %inputs, <{twice} x i16> %which)
  %words = bitcast <{twice} x i16> %picked to <{n} x i32>
  ret <{n} x i32> %words
}}
"""


def functions(called: Set[str]) -> str:
    """LLVM's text of those functions of this file that are ``called``."""
    text = ""
    for name in sorted(called):
        for kind in (_UNPACKED, _PERMUTED):
            if not name.startswith(kind):
                continue
            number, n = map(int, name.removeprefix(kind).split("_"))
            fields = {"name": name, "n": n, "twice": 2 * n, "bits": 32 * n, "window": number}
            if kind == _UNPACKED:
                text += (_PAIRS if number == PAIR else _QUADS).format(**fields)
            else:
                order = ", ".join(f"i32 {i % number}" for i in range(2 * n))
                text += _PERMUTE.format(**fields, order=order)
    return text
