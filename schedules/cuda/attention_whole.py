"""Attention with whole rows of scores, for any normaliser: in shared memory, or else in the device's.

Rows that are spilled lie in memory that a block has for itself, so there are no more blocks than a GPU runs
at a time, and each takes tiles of queries until none is left.
"""

from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.attention import Attention, evaluate
from sparsec.schedules.cuda import ptx, rows
from sparsec.schedules.cuda.attention_parts import Kernel
from sparsec.schedules.cuda.attention_tile import DOWN, SIDE, blocks
from sparsec.schedules.cuda.results import deal
from sparsec.schedules.cuda.row import Row
from sparsec.schedules.cuda.target import WARP

#: Blocks that have memory for their rows: one for each multiprocessor of the largest GPUs.
_RESIDENT = 128


class Whole(Kernel):
    """Any normaliser: scores of all keys in shared memory, then their rows, then the values."""

    kind = "whole"

    def steps(self) -> list[tir.Stmt]:
        self.normaliser = _TileRow(self, self.rounds * self.tile.keys)
        normalise = [ptx.barrier(), self.normaliser.body(), ptx.barrier()]
        return [*self.find_scores(), *normalise, *self.use_values()]

    def find_scores(self) -> list[tir.Stmt]:
        tile, words = self.tile, self.words
        stage = words.stage

        def fetch(i, at):
            return self.fetch_keys(self.start + i, words.keys + at * stage)

        def score(i, at):
            t = self.start + i
            first = t * tile.keys + self.turn * tile.own_keys

            def keep(r):
                row = self.row + r * tile.down
                return self.each_score(r, lambda i, s: self.put(row, first + self.key_at(i), s))

            return tir.seq([self.score(t, words.keys + at * stage), self.each_row(keep)])

        return [self.fetch_queries(), ptx.commit(), *ptx.pipeline(self.own, 2, fetch, score)]

    def use_values(self) -> list[tir.Stmt]:
        tile, words = self.tile, self.words
        stage = words.stage

        def fetch(i, at):
            t = self.start + i
            return tir.seq([self.fetch_values(t, words.keys + at * stage), *self.fetch_shares(t, at * stage)])

        def attend(i, at):
            own = self.row * words.score_line + self.turn * tile.own_keys
            return self.attend(self.shares(self.start + i, at * stage) + own, words.keys + at * stage)

        return ptx.pipeline(self.own, 2, fetch, attend)

    def buffers(self) -> list[tir.Buffer]:
        return [*super().buffers(), *self.normaliser.buffers]

    # ---- where rows lie ---------------------------------------------------------------------------------

    def at(self, row, key) -> tir.Expr:
        """What is kept of a row of the tile."""
        return tir.load(self.staged, self.words.scores + row * self.words.score_line + key)

    def put(self, row, key, value) -> tir.Stmt:
        return ptx.put_shared(self.staged, self.words.scores + row * self.words.score_line + key, value)

    def fetch_shares(self, t, stage) -> list[tir.Stmt]:
        """Brings what values are multiplied by in a round to shared memory, if it is not there."""
        return []

    def shares(self, t, stage) -> tir.Expr:
        """Where they begin."""
        return self.words.scores + t * self.tile.keys


class Spilled(Whole):
    """The same with rows in the device's memory, ``[block, row, key]``."""

    kind = "spilled"

    def body(self) -> tir.Stmt:
        tile, count = self.tile, blocks(self.spec, self.tile)
        resident = min(count, _RESIDENT)
        extents = resident, tile.queries, self.rounds * tile.keys
        self.spill = tirx.decl_buffer([tir.i64(extent) for extent in extents], "float32", name="spill")

        def block(index, thread):
            self.place = index
            self.thread_is(thread)

            def one(turn):
                self.tile_is(turn * resident + index)
                # Everybody has stored the results that lie where the next queries come to.
                return tir.seq([ptx.barrier(), self.all_steps()])

            loop = tir.loop("tile", (count - 1 - index) // resident + 1, one)
            return tir.seq([*self.declared(), loop])

        return tir.seq([*tir.alloc([self.spill]), ptx.grid((resident,), tile.threads, block)])

    def at(self, row, key) -> tir.Expr:
        return tir.load(self.spill, self.place, row, key)

    def put(self, row, key, value) -> tir.Stmt:
        return tirx.BufferStore(self.spill, value, [self.place, row, key])

    def fetch_shares(self, t, stage) -> list[tir.Stmt]:
        tile, words = self.tile, self.words
        runs = tile.keys // 4

        def piece(i):
            row, key = i // runs, i % runs * 4
            index = [self.place, row, t * tile.keys + key]
            return ptx.copy_async(
                self.shared, words.scores + stage + row * words.score_line + key, self.spill, index
            )

        return [deal(tile.queries * runs, tile.threads, self.thread, piece)]

    def shares(self, t, stage) -> tir.Expr:
        return self.words.scores + stage


def normalise(row: Row, spec: Attention) -> list[tir.Stmt]:
    """Puts the normaliser of the row in its place."""
    match spec.normaliser:
        case "softmax":
            return rows.softmax(row)
        case "sparsemax":
            return rows.sparsemax(row)
        case "entmax":
            return rows.entmax(row, spec.alpha)


class _TileRow(Row):
    """A row of scores: lanes side by side have it, so that a warp has several at a time."""

    def __init__(self, kernel: Whole, extent: int):
        super().__init__(extent, SIDE, 4, kept=False)
        self.kernel, self.thread = kernel, kernel.thread % SIDE

    def body(self) -> tir.Stmt:
        """All rows of the block, dealt out to its warps."""
        kernel, tile = self.kernel, self.kernel.tile
        lane_row = kernel.thread % WARP // SIDE

        def some(index):
            self.row = (index * tile.warps + kernel.warp) * DOWN + lane_row
            exists = (index * tile.warps + kernel.warp) * DOWN < tile.queries
            whole = tile.queries % (tile.warps * DOWN) == 0
            return ptx.when(None if whole else exists, tir.seq(normalise(self, kernel.spec)))

        return tir.loop("rows", -(-tile.queries // (tile.warps * DOWN)), some)

    def element(self, at) -> tir.Expr:
        return self.kernel.at(self.row, at)

    def write(self, value: Callable) -> tir.Stmt:
        spec = self.kernel.spec
        row = tirx.min(self.kernel.first + self.row, tir.i64(spec.m - 1))
        logical = [*self.kernel.batch, row, tir.i64(0)]

        def store(x, at):
            share = evaluate(spec.guard, value(x, at), self.kernel.leaves(logical))
            return self.kernel.put(self.row, at, share)

        return self._each(store)
