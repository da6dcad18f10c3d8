"""Softmax attention of few queries: blocks share the keys, and a second kernel joins what they leave.

What a block has of a row after its keys is a top, a total and sums, like what a warp has within a block, so
they are joined alike, in the same order every time.  (Dao, Haziza, Massa and Sizov, "Flash-Decoding for
long-context inference", 2023.)
"""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.attention import Attention
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.attention_online import Online
from sparsec.schedules.cuda.attention_tile import Shape, Tile, blocks, own_rounds, rounds
from sparsec.schedules.cuda.results import deal


class Split(Online):
    """Several blocks for a tile of queries, with ``own_rounds`` of keys each."""

    @staticmethod
    def takes(spec: Attention, tile: Tile) -> bool:
        return own_rounds(spec, tile) < rounds(spec, tile)

    def __init__(self, spec: Attention, shape: Shape, tile: Tile, params: list[tir.Buffer]):
        super().__init__(spec, shape, tile, params)
        self.most = own_rounds(spec, tile)
        self.splits = -(-self.rounds // self.most)
        rows = [tir.i64(extent) for extent in (self.splits, spec.batches, spec.m)]
        self.all_tops, self.all_totals, self.all_sums = (
            tirx.decl_buffer(extents, "float32", name=name)
            for name, extents in (("tops", rows), ("totals", rows), ("sums", [*rows, tir.i64(spec.e)]))
        )

    def body(self) -> tir.Stmt:
        def block(index, split, thread):
            self.split = split
            self.rounds_are(split, self.most)
            return self.block(index, thread)

        return tir.seq(
            [
                *tir.alloc([self.all_tops, self.all_totals, self.all_sums]),
                ptx.grid((blocks(self.spec, self.tile), self.splits), self.tile.threads, block),
                self.join_all(),
            ]
        )

    # ---- what a block leaves ----------------------------------------------------------------------------

    def finish(self) -> list[tir.Stmt]:
        spec = self.spec

        def leave(row):
            query = self.first + row
            index = [self.split, self.unit, query]
            numbers = enumerate((self.all_tops, self.all_totals))
            stores = [tirx.BufferStore(buffer, self.number(i), index) for i, buffer in numbers]
            inside = query < spec.m if spec.m % self.tile.queries else None
            return tir.seq([*self.weigh(row), ptx.when(inside, tir.seq(stores))])

        return [*super().finish(), deal(self.tile.queries, self.tile.threads, self.thread, leave)]

    def divide(self, row, parts: int) -> list[tir.Stmt]:
        return []  # by nothing before the end

    def store(self, query, column, value) -> tir.Stmt:
        return tirx.BufferStore(self.all_sums, value, [self.split, self.unit, query, column])

    # ---- what becomes of it -----------------------------------------------------------------------------

    def join_all(self) -> tir.Stmt:
        """The second kernel."""
        self.joins(self.splits)

        def of_row(buffer):
            return lambda split: tir.load(buffer, tir.i64(split), self.unit, self.first)

        def one(column):
            parts = [
                tir.load(self.all_sums, tir.i64(split), self.unit, self.first, column) * self.factor(split)
                for split in range(self.splits)
            ]
            return tir.seq(
                [
                    *tir.alloc([self.numbers, self.factors]),
                    *self.join(self.splits, of_row(self.all_tops), of_row(self.all_totals)),
                    *Online.divide(self, 0, self.splits),
                    Online.store(self, self.first, column, sum(parts[1:], parts[0])),
                ]
            )

        return self.each_result(one)
