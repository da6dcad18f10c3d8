"""How attention on tensor cores is cut: tiles of queries and keys, and what lies in shared memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from sparsec.schedules.attention import Attention
from sparsec.schedules.cuda.attention_tile import Tile, blocks, own_rounds, rounds, run_bytes
from sparsec.schedules.cuda.target import Gpu

#: Rows of queries, keys and columns of values that tensor cores take at a time.
STEP = 16
#: Registers of a thread for its part of the result, and for its queries, which else are read in each round.
_MOST_SUMS, _MOST_QUERIES = 128, 32
#: How much longer a warp takes for each of its queries, by its height: fewer share what it reads of keys.
_DRAG = {1: 2.0, 2: 1.25, 4: 1.0}
#: Warps that keep a multiprocessor busy: two for each of its tensor cores, one of which is at its softmax.
_BUSY = 8


@dataclass(frozen=True)
class TensorTile(Tile):
    """As ``Tile``, but for the lanes of a warp as tensor cores have them: 8 x 4.

    A warp has ``8 * height`` queries, in bands of 16; a height of 1 leaves half a band idle.  ``stages``
    rounds of keys, and of values, are in shared memory at once.
    """

    stages: int = 2

    down: ClassVar[int] = 8
    side: ClassVar[int] = 4

    @property
    def bands(self) -> int:
        return -(-self.height // 2)

    @property
    def held(self) -> int:
        return 2 * self.bands

    def words(self, spec: Attention, shape: "TensorShape", kind: str) -> "TensorWords":
        return TensorWords.of(spec, shape, self, kind)


#: Scores that are forgotten at once; of equal ones the first is taken.
ONLINE = (
    TensorTile(height=4, warps_q=4, warps_k=1, width=16, stages=2),
    TensorTile(height=4, warps_q=4, warps_k=1, width=8, stages=3),
    TensorTile(height=2, warps_q=4, warps_k=1, width=16, stages=3),
    TensorTile(height=2, warps_q=2, warps_k=2, width=8, stages=2),
    TensorTile(height=2, warps_q=1, warps_k=4, width=8, stages=3),
    TensorTile(height=1, warps_q=1, warps_k=8, width=4, stages=3),
    TensorTile(height=1, warps_q=1, warps_k=4, width=4, stages=3),
    TensorTile(height=1, warps_q=1, warps_k=1, width=4, stages=2),
)
#: Scores that are kept until the row is whole: the first that fits is taken.  The normaliser takes most of
#: the time, and wants several blocks on a multiprocessor.
WHOLE = (
    TensorTile(height=2, warps_q=1, warps_k=4, width=4),
    TensorTile(height=1, warps_q=1, warps_k=4, width=4),
    TensorTile(height=1, warps_q=1, warps_k=1, width=4),
)
#: The same in the memory of the device.
SPILLED = (TensorTile(height=2, warps_q=2, warps_k=4, width=4), *WHOLE)
TILES = {"online": ONLINE, "whole": WHOLE, "spilled": SPILLED}


@dataclass(frozen=True)
class TensorShape:
    """A row of queries or keys, ``d`` values, and one of values, ``e``: whole steps, ``line`` words apart.

    The eight rows that ``ldmatrix`` reads at once start in different banks.  A thread's part of the result
    is ``parts`` vectors of two.
    """

    d: int
    d_line: int
    e: int
    e_line: int

    vector: ClassVar[int] = 2

    @property
    def parts(self) -> int:
        return self.e // 8

    @property
    def columns(self) -> int:
        return self.vector * self.parts

    @staticmethod
    def of(spec: Attention) -> "TensorShape":
        d, e = (-(-count // STEP) * STEP for count in (spec.d, spec.e))
        return TensorShape(d, d // 2 + 4, e, e // 2 + 4)


@dataclass(frozen=True)
class TensorWords:
    """Where things begin in shared memory, in words; as ``attention_tile.Words``.

    A stage has keys and, online, ``values`` words behind its start, the values of a round; "spilled" it has
    keys or values, and the scores of a round.
    """

    keys: int
    values: int
    stage: int
    scores: int
    score_line: int
    sum_line: int
    tops: int
    totals: int
    total: int

    @staticmethod
    def of(spec: Attention, shape: TensorShape, tile: TensorTile, kind: str) -> "TensorWords":
        online, spilled = kind == "online", kind == "spilled"
        keys = tile.queries * shape.d_line
        values = tile.keys * shape.d_line if online else 0
        inputs = values + tile.keys * (shape.e_line if online else max(shape.d_line, shape.e_line))
        # Rows below each other start in banks of their own for reads of two words by each lane.
        covered = tile.keys * (1 if spilled else rounds(spec, tile))
        score_line = -(-covered // 32) * 32 + 8
        kept = 0 if online else tile.queries * score_line
        stage = inputs + (kept if spilled else 0)
        behind = keys + tile.stages * stage
        scores, used = (keys + inputs, behind) if spilled else (behind, behind + kept)
        sum_line = shape.e + 4
        tops = tile.warps_k * tile.queries * sum_line
        totals = tops + tile.warps_k * tile.queries
        ended = totals + tile.warps_k * tile.queries
        return TensorWords(keys, values, stage, scores, score_line, sum_line, tops, totals, max(used, ended))


def not_in_pairs(spec: Attention) -> str | None:
    """Which operands cannot be copied, as no two neighbours lie beside each other; None where all can."""
    places = (("queries", spec.q, spec.d), ("keys", spec.k, spec.d), ("values", spec.v, spec.e))
    return next((name for name, place, columns in places if run_bytes(place, columns) < 4), None)


def tile_for(spec: Attention, shape: TensorShape, gpu: Gpu, kind: str) -> TensorTile | None:
    """The tile in the shared memory of ``gpu``; None where none fits.

    Online it is the one whose busiest multiprocessor has the least to do.
    """
    fitting = list(_fitting(spec, shape, gpu, kind))
    if not fitting or kind != "online":
        return fitting[0] if fitting else None

    def work(tile: TensorTile) -> float:
        part = own_rounds(spec, tile) / rounds(spec, tile)
        own = -(-math.ceil(blocks(spec, tile) / part) // gpu.oldest.multiprocessors)
        return own * part * tile.queries * _DRAG[tile.height] / min(1, own * tile.warps / _BUSY)

    return min(fitting, key=work)


def _fitting(spec: Attention, shape: TensorShape, gpu: Gpu, kind: str) -> Iterator[TensorTile]:
    """Those that there is room for, with as many stages as they have."""
    for tile in TILES[kind]:
        if tile.held * shape.columns > _MOST_SUMS:
            continue
        for stages in range(tile.stages, 1, -1):
            fewer = replace(tile, stages=stages)
            if fewer.words(spec, shape, kind).total * 4 <= gpu.shared:
                yield fewer
                break


def holds(tile: TensorTile, shape: TensorShape) -> bool:
    """Whether queries stay in registers."""
    return tile.bands * shape.d // STEP * 4 <= _MOST_QUERIES
