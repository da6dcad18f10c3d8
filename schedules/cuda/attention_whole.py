"""Attention with whole rows of scores in shared memory, for any normaliser."""

from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.attention import evaluate
from sparsec.schedules.cuda import ptx, rows
from sparsec.schedules.cuda.attention_parts import Kernel
from sparsec.schedules.cuda.attention_tile import DOWN, SIDE, rounds
from sparsec.schedules.cuda.row import Row
from sparsec.schedules.cuda.target import WARP


class Whole(Kernel):
    """Any normaliser: scores of all keys in shared memory, then their rows, then the values."""

    online = False

    def steps(self) -> list[tir.Stmt]:
        tile, words = self.tile, self.words
        stage = words.values - words.keys
        own_scores = words.scores + self.row * words.score_line + self.turn * tile.own_keys

        def score(t, at):
            def keep(r):
                def one(i, s):
                    word = own_scores + r * (DOWN * words.score_line) + t * tile.keys + i * SIDE + self.side
                    return ptx.put_shared(self.shared, word, s)

                return self.each_score(r, one)

            return tir.seq([self.score(t, words.keys + at * stage), self.each_row(keep)])

        def attend(t, at):
            return self.attend(own_scores + t * tile.keys, words.keys + at * stage)

        self.normaliser = _TileRow(self, rounds(self.spec, tile) * tile.keys)
        return [
            self.fetch_queries(),
            ptx.commit(),
            *ptx.pipeline(self.rounds, 2, lambda t, at: self.fetch_keys(t, words.keys + at * stage), score),
            ptx.barrier(),
            self.normaliser.body(),
            ptx.barrier(),
            *ptx.pipeline(
                self.rounds, 2, lambda t, at: self.fetch_values(t, words.keys + at * stage), attend
            ),
        ]

    def buffers(self) -> list[tir.Buffer]:
        return [*super().buffers(), *self.normaliser.buffers]


class _TileRow(Row):
    """A row of scores: lanes side by side have it, so that a warp has several at a time."""

    def __init__(self, kernel: Kernel, extent: int):
        super().__init__(extent, SIDE, 4, kept=False)
        self.kernel, self.thread = kernel, kernel.side

    def body(self) -> tir.Stmt:
        """All rows of the block, dealt out to its warps."""
        kernel, tile = self.kernel, self.kernel.tile
        normalise = {"softmax": rows.softmax, "sparsemax": rows.sparsemax}[kernel.spec.normaliser]
        lane_row = kernel.thread % WARP // SIDE

        def some(index):
            self.row = (index * tile.warps + kernel.warp) * DOWN + lane_row
            exists = (index * tile.warps + kernel.warp) * DOWN < tile.queries
            whole = tile.queries % (tile.warps * DOWN) == 0
            return ptx.when(None if whole else exists, tir.seq(normalise(self)))

        return tir.loop("rows", -(-tile.queries // (tile.warps * DOWN)), some)

    def _word(self, at):
        return self.kernel.words.scores + self.row * self.kernel.words.score_line + at

    def element(self, at) -> tir.Expr:
        return tir.load(self.kernel.shared, self._word(at))

    def write(self, value: Callable) -> tir.Stmt:
        spec = self.kernel.spec
        row = tirx.min(self.kernel.first + self.row, tir.i64(spec.m - 1))
        logical = [*self.kernel.batch, row, tir.i64(0)]

        def store(x, at):
            share = evaluate(spec.guard, value(x, at), lambda which: self.kernel.operand(which, logical))
            return ptx.put_shared(self.kernel.shared, self._word(at), share)

        return self._each(store)
