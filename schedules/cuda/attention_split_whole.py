"""Attention of few queries with whole rows of scores, for any normaliser: four kernels that use all of a GPU.

Blocks share the keys of a tile and leave scores in the device's memory, a warp or a block normalises each row
there, blocks share the keys once more and leave sums, and these are added, in the same order every time.
"""

from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.attention import Attention, evaluate
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.attention_parts import Kernel
from sparsec.schedules.cuda.attention_tile import Shape, Tile, blocks, own_rounds, rounds
from sparsec.schedules.cuda.attention_whole import Spilled, normalise
from sparsec.schedules.cuda.row import MemoryRow

#: The most queries: of more, the lanes of one block have rows enough.
_QUERIES = 4


class SplitWhole:
    """Makes the kernels as ``Kernel`` makes one."""

    kind = "spilled"

    @staticmethod
    def takes(spec: Attention, tile: Tile) -> bool:
        return spec.m <= _QUERIES and own_rounds(spec, tile) < rounds(spec, tile)

    def __init__(self, spec: Attention, shape: Shape, tile: Tile, params: list[tir.Buffer]):
        self.spec, self.tile = spec, tile
        self.splits = -(-rounds(spec, tile) // own_rounds(spec, tile))
        kept = blocks(spec, tile), tile.queries, rounds(spec, tile) * tile.keys
        left = self.splits, spec.batches, spec.m, spec.e
        self.spill, self.partial = (
            tirx.decl_buffer([tir.i64(extent) for extent in extents], "float32", name=name)
            for name, extents in (("spill", kept), ("partial", left))
        )
        self.scores = _Scores(spec, shape, tile, params, spill=self.spill)
        self.values = _Values(spec, shape, tile, params, spill=self.spill, partial=self.partial)

    def body(self) -> tir.Stmt:
        shared = blocks(self.spec, self.tile), self.splits
        return tir.seq(
            [
                *tir.alloc([self.spill, self.partial]),
                ptx.grid(shared, self.tile.threads, self.scores.own_block),
                self.normalise(),
                ptx.grid(shared, self.tile.threads, self.values.own_block),
                self.values.each_result(self.add_up),
            ]
        )

    def normalise(self) -> tir.Stmt:
        row = _Rows.of(self.spill, self.spill, 2)
        row.of_kernel = self.scores
        return row.kernel(lambda: normalise(row, self.spec))

    def add_up(self, column) -> tir.Stmt:
        at = self.values.unit, self.values.first, column
        parts = [tir.load(self.partial, tir.i64(split), *at) for split in range(self.splits)]
        return Kernel.store(self.values, self.values.first, column, sum(parts[1:], parts[0]))


class _Scores(Spilled):
    """The scores of a tile and some rounds of keys."""

    def __init__(
        self, spec: Attention, shape: Shape, tile: Tile, params: list[tir.Buffer], spill: tir.Buffer
    ):
        super().__init__(spec, shape, tile, params)
        self.spill = spill

    def own_block(self, index, split, thread) -> tir.Stmt:
        self.place, self.split = index, split
        self.rounds_are(split, own_rounds(self.spec, self.tile))
        return self.block(index, thread)

    def buffers(self) -> list[tir.Buffer]:
        return Kernel.buffers(self)

    def steps(self) -> list[tir.Stmt]:
        return self.find_scores()

    def finish(self) -> list[tir.Stmt]:
        return []


class _Values(_Scores):
    """What these keys add to the results."""

    def __init__(self, *args, spill: tir.Buffer, partial: tir.Buffer):
        super().__init__(*args, spill=spill)
        self.partial = partial

    def steps(self) -> list[tir.Stmt]:
        return self.use_values()

    def finish(self) -> list[tir.Stmt]:
        return Kernel.finish(self)

    def store(self, query, column, value) -> tir.Stmt:
        return tirx.BufferStore(self.partial, value, [self.split, self.unit, query, column])


class _Rows(MemoryRow):
    """Rows of scores, ``[tile, row, key]``, those behind the last query included, which nobody reads."""

    of_kernel: Kernel

    def write(self, value: Callable) -> tir.Stmt:
        kernel, guard = self.of_kernel, self.of_kernel.spec.guard
        tile, row = self.at
        kernel.tile_is(tile)
        query = tirx.min(kernel.first + row, tir.i64(kernel.spec.m - 1))
        leaves = kernel.leaves([*kernel.batch, query, tir.i64(0)])

        def store(x, at):
            return tirx.BufferStore(self.y, evaluate(guard, value(x, at), leaves), [tile, row, at])

        return self._each(store, vector=guard == "S")  # CUDA C does not compare vectors
