"""The name of an N:M pattern: `2:4`, or `2:4x32` when 32 output channels share the kept positions."""

import re
from dataclasses import dataclass

from sparsec.passes.base import PassError

BLOCKS = (1, 4, 8, 16, 32, 64)
"""How many consecutive output channels may share their kept positions."""

MAX_M = 64
"""Longest group: beyond it a group is a whole row, and the pattern says nothing that a row count does not."""

MIN_ZEROS = 0.6
"""Share of zeros from which a weight without an N:M pattern is worth a kernel that skips single weights."""

_TEXT = re.compile(r"(\d+):(\d+)(?:x(\d+))?")


@dataclass(frozen=True, order=True)
class NM:
    """Each group of `m` consecutive inputs keeps `n`; `block` consecutive output channels agree on which.

    Groups never straddle the end of the axis: a tail shorter than `m` is dense. Raises `PassError` for
    numbers that make no pattern.
    """

    n: int
    m: int
    block: int = 1

    def __post_init__(self) -> None:
        for name in ("n", "m", "block"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise PassError(f"N:M pattern: {name} must be an integer, found {value!r}")
        if not 1 <= self.n < self.m:
            raise PassError(
                f"N:M pattern: 1 <= n < m is required, found n={self.n}, m={self.m}; 2:4 keeps 2 of every 4"
            )
        if self.m > MAX_M:
            raise PassError(f"N:M pattern: m is at most {MAX_M}, found m={self.m}; choose shorter groups")
        if self.block not in BLOCKS:
            raise PassError(
                f"N:M pattern: block must be one of {', '.join(map(str, BLOCKS))}, found block={self.block}"
            )

    @classmethod
    def parse(cls, text: str) -> "NM":
        """`"2:4x32"` -> `NM(2, 4, 32)`; without `x...` the block is 1. Raises `PassError` on other text."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise PassError(f"N:M pattern: required n:m or n:mxblock, found {text!r}; write 2:4 or 2:4x32")
        return cls(int(match[1]), int(match[2]), int(match[3] or 1))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" + (f"x{self.block}" if self.block > 1 else "")

    def kept(self, k: int) -> int:
        """Positions that are stored along an axis of `k`: n of each full group, and the whole tail."""
        return k // self.m * self.n + k % self.m

    def kept_fraction(self, k: int) -> float:
        """`kept(k) / k`: the share of the multiplications that is left."""
        return self.kept(k) / k

    def within(self, channels: int) -> "NM":
        """The same pattern with the smallest block that holds `channels` where all of them fit into one."""
        return NM(self.n, self.m, min(self.block, next((b for b in BLOCKS if b >= channels), self.block)))


@dataclass(frozen=True)
class Scattered:
    """At most `n` of `m` weights are not zero, on average over the whole weight; they may lie anywhere.

    Every `block` consecutive output channels have their non-zeros at the same inputs.
    """

    n: int
    m: int
    block: int

    def __str__(self) -> str:
        shared = f", shared by {self.block} outputs" if self.block > 1 else ""
        return f"unstructured zeros{shared}"

    def kept_fraction(self, _k: int) -> float:
        """The share of the multiplications that is left."""
        return self.n / self.m
