"""What a pattern asks of a weight matrix: which columns form groups, and which rows share their choice.

Every method of this package works on a matrix `[rows, K]` whose columns are in the order of a `Layout`:
first `groups` runs of `m` columns, each of which keeps `n`, then the columns of no group, which stay whole.
A convolution's K counts its kernel taps, `taps * in`, and no group crosses from one tap to the next. `block`
consecutive rows share the kept columns; the last block may be short.

    2:4x32   n:m shared by 32 rows, as in `nm_pattern`
    60%      unstructured: of each row's weights 60 % become zero; `60%x16`: 16 rows agree on which
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from sparsec.passes.base import PassError
from sparsec.passes.nm_pattern import NM

_UNSTRUCTURED = re.compile(r"(\d+(?:\.\d+)?)%(?:x(\d+))?")


@dataclass(frozen=True)
class Unstructured:
    """The share `sparsity` of the weights of each block of `block` rows becomes zero, anywhere in them."""

    sparsity: float
    block: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise PassError(
                f"unstructured pattern: more than 0% and less than 100% is required, found {self}"
            )
        if self.block < 1:
            raise PassError(f"unstructured pattern: the block is 1 or more, found {self.block}")

    def __str__(self) -> str:
        return f"{100 * self.sparsity:g}%" + (f"x{self.block}" if self.block > 1 else "")


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns `kept` bool `[in]` stay in every row and at every tap; `text` is how that was asked for."""

    kept: np.ndarray
    text: str

    def __str__(self) -> str:
        return self.text


Pattern = NM | Unstructured | Columns


def parse_pattern(text: str) -> Pattern:
    """`2:4`, `2:4x32`, `60%` or `60%x16`. Raises `PassError` on other text."""
    if match := _UNSTRUCTURED.fullmatch(text.strip()):
        return Unstructured(float(match[1]) / 100, int(match[2] or 1))
    return NM.parse(text)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a pattern lies in a matrix `[rows, K]`; `order` are K column indices, groups first."""

    rows: int
    order: np.ndarray
    groups: int
    n: int
    m: int
    block: int

    @classmethod
    def of(cls, pattern: Pattern, rows: int, inputs: int, taps: int = 1) -> Layout:
        """For a weight `[rows, taps * inputs]`, taps outermost."""
        columns = np.arange(taps * inputs)
        if isinstance(pattern, Columns):
            return cls(rows, columns, 0, 0, 1, rows)
        if isinstance(pattern, Unstructured):
            n = round((1 - pattern.sparsity) * len(columns))
            return cls(
                rows, columns, 1, min(max(n, 1), len(columns) - 1), len(columns), min(pattern.block, rows)
            )
        by_tap, full = columns.reshape(taps, inputs), inputs // pattern.m * pattern.m
        order = np.concatenate([by_tap[:, :full].ravel(), by_tap[:, full:].ravel()])
        groups = taps * (inputs // pattern.m)
        return cls(rows, order, groups, pattern.n, pattern.m, min(pattern.block, rows))

    @property
    def grouped(self) -> int:
        """How many columns, the first ones, belong to groups."""
        return self.groups * self.m

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block)

    def block_rows(self, index: int) -> slice:
        return slice(index * self.block, min((index + 1) * self.block, self.rows))

    def restore(self, array: np.ndarray) -> np.ndarray:
        """Columns in the layout's order -> in the weight's own."""
        out = np.empty_like(array)
        out[..., self.order] = array
        return out

    def fold(self, array: np.ndarray) -> np.ndarray:
        """`[rows, ...]` -> `[blocks, block, ...]`; a short last block is filled with zeros."""
        short = self.blocks * self.block - self.rows
        padded = np.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1)) if short else array
        return padded.reshape(self.blocks, self.block, *array.shape[1:])

    def spread(self, keep: np.ndarray) -> np.ndarray:
        """What each block has, for each row: `[blocks, ...]` -> `[rows, ...]`."""
        return np.repeat(keep, self.block, axis=0)[: self.rows]

    def best(self, score: np.ndarray) -> np.ndarray:
        """bool `[blocks, K]`: in each group the n columns with the highest `score` `[rows, K]`, summed over
        the rows of the block; of equal scores the lower column, and NaN above all numbers."""
        total = self.fold(score[:, : self.grouped]).sum(axis=1)
        total = np.where(np.isnan(total), np.inf, total).reshape(self.blocks, self.groups, self.m)
        top = np.argsort(-total, axis=-1, kind="stable")[..., : self.n]
        chosen = np.zeros(total.shape, bool)
        np.put_along_axis(chosen, top, True, axis=-1)
        keep = np.ones((self.blocks, len(self.order)), bool)
        keep[:, : self.grouped] = chosen.reshape(self.blocks, self.grouped)
        return keep
