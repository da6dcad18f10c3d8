"""How attention is cut for a GPU: tiles of queries and keys, and what lies in shared memory."""

import math
from dataclasses import dataclass
from typing import ClassVar

from sparsec.schedules.attention import Attention, Strided

#: Threads of a warp below and beside each other: rows of queries, and keys or values.
DOWN, SIDE = 4, 8
#: Sums that a thread may have for its part of the result, and those with its scores: the rest is operands.
_MOST_SUMS, _MOST = 128, 144
#: Blocks that keep the memory of the largest GPUs busy, the fewest rounds that are worth a block of their
#: own, and the most blocks that may share a row: each sum of all of them is added up by one thread.
_BLOCKS, _LEAST_ROUNDS, _MOST_SPLITS = 128, 4, 32


@dataclass(frozen=True)
class Tile:
    """What one block of threads computes, and how its warps share it.

    A warp has 4 x 8 threads of ``height`` queries and ``width`` keys each.  ``warps_q`` warps have queries
    of their own, ``warps_k`` have keys of their own, whose sums are added at the end.
    """

    height: int
    warps_q: int
    warps_k: int
    width: int

    down: ClassVar[int] = DOWN
    side: ClassVar[int] = SIDE

    @property
    def queries(self) -> int:
        return self.height * self.down * self.warps_q

    @property
    def own_keys(self) -> int:
        """Keys of a warp in one round."""
        return self.side * self.width

    @property
    def keys(self) -> int:
        return self.own_keys * self.warps_k

    @property
    def held(self) -> int:
        """Queries of a thread that there are registers for."""
        return self.height

    @property
    def warps(self) -> int:
        return self.warps_q * self.warps_k

    @property
    def threads(self) -> int:
        return 32 * self.warps

    def words(self, spec: Attention, shape: "Shape", kind: str) -> "Words":
        return Words.of(spec, shape, self, kind)


#: Scores that are forgotten at once, by the most queries that a tile is for; the first that fits is taken.
ONLINE = (
    (4, Tile(height=1, warps_q=1, warps_k=8, width=2)),
    (16, Tile(height=4, warps_q=1, warps_k=4, width=4)),
    (1 << 62, Tile(height=4, warps_q=4, warps_k=1, width=8)),
    (1 << 62, Tile(height=4, warps_q=2, warps_k=1, width=4)),
    (1 << 62, Tile(height=1, warps_q=4, warps_k=1, width=4)),
    (1 << 62, Tile(height=1, warps_q=1, warps_k=1, width=2)),
)
#: Scores that are kept until the row is whole.
WHOLE = (
    (4, Tile(height=1, warps_q=1, warps_k=4, width=2)),
    (1 << 62, Tile(height=4, warps_q=1, warps_k=4, width=2)),
    (1 << 62, Tile(height=2, warps_q=1, warps_k=4, width=2)),
    (1 << 62, Tile(height=1, warps_q=1, warps_k=4, width=2)),
    (1 << 62, Tile(height=1, warps_q=1, warps_k=1, width=2)),
)
#: The same in the memory of the device: more queries, since shared memory has room for them.
SPILLED = (
    (4, Tile(height=1, warps_q=1, warps_k=8, width=2)),
    (1 << 62, Tile(height=4, warps_q=2, warps_k=4, width=2)),
    *WHOLE[1:],
)
TILES = {"online": ONLINE, "whole": WHOLE, "spilled": SPILLED}


@dataclass(frozen=True)
class Shape:
    """A row of queries, keys, values and scores in shared memory: words, and those from row to row.

    Lanes below each other read four words of rows that follow each other, lanes side by side too, so rows
    start in different banks.  A thread's values are ``parts`` vectors of ``vector``.
    """

    d: int
    d_line: int
    vector: int
    parts: int

    @property
    def e(self) -> int:
        return SIDE * self.vector * self.parts

    @property
    def e_line(self) -> int:
        return self.e

    @property
    def columns(self) -> int:
        """Values of a thread."""
        return self.vector * self.parts

    @staticmethod
    def of(spec: Attention) -> "Shape":
        d = -(-spec.d // 4) * 4
        vector = 1 if spec.e <= SIDE else 2 if spec.e <= 2 * SIDE else 4
        return Shape(d, d if d // 4 % 2 else d + 4, vector, -(-spec.e // (SIDE * vector)))


@dataclass(frozen=True)
class Words:
    """Where things begin in shared memory, in words.

    "online", keys and values have a place each and ``scores`` are those of a round, ``[warp, row, key]``;
    else two stages serve both in turn, and ``scores`` are those of all, ``[row, key]``, or, "spilled", those
    of a round, in each stage.  When all rounds are over, sums ``[turn, query, value]``, ``tops`` and
    ``totals``, ``[turn, query]``, lie in their place.
    """

    keys: int
    values: int
    scores: int
    score_line: int
    sum_line: int
    tops: int
    totals: int
    total: int

    @property
    def stage(self) -> int:
        return self.values - self.keys

    @staticmethod
    def of(spec: Attention, shape: Shape, tile: Tile, kind: str) -> "Words":
        online = kind == "online"
        covered = {"online": tile.own_keys, "whole": rounds(spec, tile) * tile.keys, "spilled": tile.keys}[
            kind
        ]
        # A whole line of eight lanes more, so that rows below each other start in banks of their own.
        score_line = -(-covered // 32) * 32 + SIDE
        kept = tile.queries * (tile.warps_k if online else 1) * score_line
        keys = tile.queries * shape.d_line
        inputs = tile.keys * (shape.d_line if online else max(shape.d_line, shape.e_line))
        stage = inputs + (kept if kind == "spilled" else 0)
        values = keys + stage
        behind = values + (tile.keys * shape.e_line if online else stage)
        scores, used = (keys + inputs, behind) if kind == "spilled" else (behind, behind + kept)
        sum_line = shape.e_line + 4
        tops = tile.warps_k * tile.queries * sum_line
        totals = tops + tile.warps_k * tile.queries
        ended = totals + tile.warps_k * tile.queries
        return Words(keys, values, scores, score_line, sum_line, tops, totals, max(used, ended))


def rounds(spec: Attention, tile: Tile) -> int:
    """How often all keys are taken, some at a time."""
    return -(-spec.n // tile.keys)


def blocks(spec: Attention, tile: Tile) -> int:
    """Tiles of queries."""
    return -(-spec.m // tile.queries) * spec.batches


def own_rounds(spec: Attention, tile: Tile) -> int:
    """Rounds of a block online: all, or fewer where there are too few tiles for all multiprocessors."""
    splits = min(_MOST_SPLITS, max(1, _BLOCKS // blocks(spec, tile)))
    return max(_LEAST_ROUNDS, -(-rounds(spec, tile) // splits))


def tile_for(spec: Attention, shape: Shape, shared: int, kind: str) -> Tile | None:
    """The tile in ``shared`` bytes of shared memory; None where none fits."""

    def fits(tile: Tile) -> bool:
        sums = tile.height * shape.columns
        return (
            sums <= _MOST_SUMS
            and sums + tile.height * tile.width <= _MOST
            and tile.words(spec, shape, kind).total * 4 <= shared
        )

    wide = (tile for most, tile in TILES[kind] if spec.m <= most)
    return next(filter(fits, wide), None)


def run_bytes(place: Strided, columns: int) -> int:
    """Bytes by which rows of so many ``columns`` can be copied: at most 16, at least an element's."""
    if place.strides[-1] != 1:
        return place.bytes
    return place.bytes * math.gcd(16 // place.bytes, place.offset, columns, *place.strides[:-1])
