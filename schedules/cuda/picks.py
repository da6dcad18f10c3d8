"""Weights whose zeros 16 channels share, for tensor cores: dense fragments of the kept inputs, and selectors.

Of a block of 64 inputs of token ``g``, lane ``4 g + t`` of a warp reads the 16 neighbours from ``16 t`` on.
A pattern of groups that divide 16 keeps equally many of each 16, so every lane picks its own share of the
right operand from its own registers, and no two lanes exchange anything: two kept inputs make a word, by byte
permutes that choose among 8 neighbours, or 16.

Two arrays: values as ``fragments`` has them, ``[N/16, K/64, steps, 32, 4]``; and for each lane ``t`` the
selectors of its words, ``[N/16, K/64, words, selectors, 4]``.  The lower half of the first selector chooses
among four neighbours, its upper half between two fours, the second one between two eights.

Needs numpy alone.
"""

import math
from dataclasses import dataclass

import numpy as np

from sparsec.schedules.cuda.fragments import (
    COLUMNS,
    LANES,
    ROWS,
    SPARSE,
    VALUES,
    Number,
    arranged,
    rows_of,
    words_of,
)
from sparsec.schedules.layout import Pattern

#: Inputs of a block, and those of them that a lane reads.
BLOCK, OWN = 64, 16
#: Lanes that share a token.
_SIDE = 4


@dataclass(frozen=True)
class Picks:
    """``n`` of ``m`` inputs are kept, the same by ``share`` bands of 16 channels: 1, 2 or 4."""

    n: int
    m: int
    share: int

    @property
    def kept(self) -> int:
        """Of the inputs of a lane."""
        return OWN * self.n // self.m

    @property
    def steps(self) -> int:
        """Fragments of a block."""
        return self.kept // 4

    @property
    def words(self) -> int:
        """Of the right operand, of a lane and a block."""
        return self.kept // 2

    @property
    def among(self) -> int:
        """Neighbours that the two inputs of a word are among."""
        return 8 if self.m <= 8 and 8 * self.n % (2 * self.m) == 0 else OWN

    @property
    def selectors(self) -> int:
        return 1 if self.among == 8 else 2

    @property
    def metadata(self) -> int:
        """Words of a band and a block."""
        return self.words * self.selectors * _SIDE

    @staticmethod
    def of(pattern: Pattern, channels: int) -> "Picks | None":
        """Those of a pattern that lanes can pick, with zeros where a fragment wants more than it keeps.

        None where that is more than half of the inputs, and for what the instruction for 2:4 takes at a half.
        """
        m = pattern.m
        if pattern.dense or pattern.scattered or pattern.block % ROWS or OWN % m or channels % m:
            return None
        n = next(n for n in range(pattern.n, m + 1) if OWN * n % (4 * m) == 0)
        if 2 * n > m or 2 * n == m <= SPARSE.m:
            return None
        return Picks(n, m, math.gcd(pattern.block // ROWS, 4))

    def shapes(self, n: int, k: int) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each packed array."""
        bands, blocks = -(-n // ROWS), -(-k // BLOCK)
        return [
            ((bands, blocks, self.steps, LANES, VALUES), "uint32"),
            ((bands, blocks, self.words, self.selectors, _SIDE), "uint32"),
        ]

    def pack(
        self, weight: np.ndarray, number: Number, kept: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Packs float32 ``weight [n, k]``; ``kept`` marks what to store, else non-zeros.

        Raises ValueError where channels that share their zeros keep more than ``n`` of ``m``.
        """
        fill = [(0, -weight.shape[0] % (ROWS * self.share)), (0, -weight.shape[1] % BLOCK)]
        padded = np.pad(weight, fill)
        kept = padded != 0 if kept is None else np.pad(kept, fill)
        groups = kept.reshape(-1, ROWS * self.share, padded.shape[1] // self.m, self.m).any(1)
        if groups.sum(-1).max(initial=0) > self.n:
            raise ValueError(
                f"pack: required at most {self.n} of {self.m} inputs kept by {ROWS * self.share} channels, "
                f"found {groups.sum(-1).max()}"
            )
        # Kept ones first, then any others, in their order.
        index = np.sort(np.argsort(~groups, axis=-1, kind="stable")[..., : self.n], axis=-1)
        index = (index + np.arange(index.shape[1])[:, None] * self.m).reshape(len(index), -1)
        index = np.repeat(index, self.share, axis=0)[: -(-weight.shape[0] // ROWS)]
        rows = padded[: len(index) * ROWS].reshape(len(index), ROWS, -1)
        stored = np.take_along_axis(rows, index[:, None], 2)
        words = words_of(self._in_steps(stored).reshape(len(index) * ROWS, -1), number)
        return arranged(words, self.steps), self._selectors(index)

    def unpack(self, arrays: tuple[np.ndarray, ...], n: int, k: int, number: Number) -> np.ndarray:
        """The dense float32 weight ``[n, k]`` that the packed arrays stand for."""
        values = number.from_bits(rows_of(arrays[0]).view("uint16"))
        bands, blocks = arrays[0].shape[:2]
        split = values.reshape(bands, ROWS, blocks, self.steps, 2, _SIDE, 2)
        stored = split.transpose(0, 1, 2, 5, 3, 4, 6).reshape(bands, ROWS, -1)
        dense = np.zeros((bands, ROWS, blocks * BLOCK), np.float32)
        np.put_along_axis(dense, np.broadcast_to(self._index(arrays[1])[:, None], stored.shape), stored, 2)
        return dense.reshape(bands * ROWS, -1)[:n, :k]

    def _in_steps(self, stored: np.ndarray) -> np.ndarray:
        """Kept values ``[..., (block, t, step, half, x)]`` in the order block, step, half, t, x."""
        split = stored.reshape(*stored.shape[:2], -1, _SIDE, self.steps, 2, 2)
        return np.ascontiguousarray(split.transpose(0, 1, 2, 4, 5, 3, 6)).reshape(stored.shape)

    def _selectors(self, index: np.ndarray) -> np.ndarray:
        """Of the kept columns ``index [band, (block, t, word, x)]``, ascending."""
        own = (index % OWN).reshape(len(index), -1, _SIDE, self.words, 2).astype(np.uint32)
        four, eight, all_ = (
            _both(part) for part in (own % 4 * 0x22, (own // 4 % 2) * 0x44, (own // 8) * 0x44)
        )
        # Four neighbours are two words: bytes 2 i and 2 i + 1.  Of two fours a word each has come so far.
        first = four + 0x1010 | (eight + 0x3210) << np.uint32(16)
        found = [first] if self.among == 8 else [first, all_ + np.uint32(0x3210)]
        return np.ascontiguousarray(np.stack(found, -1).transpose(0, 1, 3, 4, 2))

    def _index(self, selectors: np.ndarray) -> np.ndarray:
        """The columns that ``_selectors`` was made of."""
        bands, blocks = selectors.shape[:2]
        x = np.arange(2, dtype=np.uint32) * 8
        words = selectors.transpose(0, 1, 4, 2, 3)[..., None]
        own = (words[..., 0, :] >> x & 7) // 2 + (words[..., 0, :] >> (x + 16) & 4)
        if self.among == 8:
            own = own + (np.arange(self.words) * 2 // (self.kept // 2) * 8)[:, None]
        else:
            own = own + (words[..., 1, :] >> x & 4) * 2
        start = np.arange(blocks * _SIDE).reshape(blocks, _SIDE, 1, 1) * OWN
        return (own + start).reshape(bands, -1).astype(np.int64)


def place(picks: Picks, stored):
    """``(block, word, t, x)`` of a stored column, for integers and for expressions alike."""
    column = stored % COLUMNS
    word = stored % (COLUMNS * picks.steps) // COLUMNS * 2 + column // 8
    return stored // (COLUMNS * picks.steps), word, column % 8 // 2, column % 2


def _both(parts: np.ndarray) -> np.ndarray:
    """Two bytes ``[..., 2]`` as the lower and the upper one of 16 bits."""
    return parts[..., 0] | parts[..., 1] << np.uint32(8)
