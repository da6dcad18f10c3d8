"""The kernel of attention: a block of queries against all keys, its scores in the second-level cache at most.

A task takes one batch.  It turns the keys once into panels of 16 (lanes over keys), then for every block of
queries: products with all keys, scored on the registers; the normaliser over the rows in place; products
with the values, which are read where they lie.  Softmax is divided by its sum only in the last store.

The scores have room for whole vectors of keys; what is behind the last key is -inf, and so no row has a tail.
The last block of queries may repeat queries of the block before it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir, vector
from sparsec.schedules.attention import Attention, evaluate, spec_of
from sparsec.schedules.attention_rows import TOGETHER, Normaliser
from sparsec.schedules.batch_matmul_kernel import MANY_BATCHES, SQUARE, column_parts, transpose
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_plan import Extent, TilePlan, tile_plan, tile_plans
from sparsec.schedules.contraction_tile import Tile, pieces, tile_loops
from sparsec.schedules.layout import DENSE, PANEL, panels
from sparsec.schedules.target import Cpu

#: Most queries of a block; enough that a panel of keys, once in the first-level cache, serves many.
MOST_ROWS = 64


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """The scheduled kernel of a definition of ``Attention``, with the same parameters."""
    spec = spec_of(func)
    if spec is None or 0 in (*spec.y_shape, spec.n, spec.d):
        return None
    q, k, v, *operands, y = func.params
    lanes = min(cpu.lanes, PANEL)
    block, plan = block_plan(cpu, spec)
    blocks = vector.Steps(spec.m, block)
    shares = _shares(blocks.count, -(-MANY_BATCHES // spec.batches))
    own = blocks.count // shares

    def task(indices):
        *batch, share = indices
        kernel = _Kernel(cpu, spec, q, k, v, operands, y, lanes, block, plan, batch)
        return kernel.task(lambda i: blocks.start(share * tir.i64(own) + i), own)

    work = spec.batches * spec.m * spec.n * (spec.d + spec.e) // 8
    body = vector.spread((*spec.batch, shares), work, task)
    kernel = tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)
    return kernel.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


def _shares(blocks: int, wanted: int) -> int:
    """Tasks that the blocks of one batch make: each gets equally many blocks."""
    return max(parts for parts in range(1, min(blocks, wanted) + 1) if blocks % parts == 0)


def block_plan(cpu: Cpu, spec: Attention) -> tuple[int, TilePlan]:
    """Queries in a block whose scores fit a quarter of the second-level cache, and the tile of its scores."""
    width = padded(spec.n)
    most = max(TOGETHER, min(MOST_ROWS, cpu.l2 // 4 // (4 * width)))

    def plan(block: int) -> tuple[float, TilePlan]:
        extent = Extent(DENSE, spec.d, spec.q.strides[-2], block, width, panels(spec.n))
        cost, tile = tile_plans(cpu, extent)[0]
        return vector.Steps(spec.m, block).count * cost, tile

    # From the largest down, so that of equals the largest wins.
    sizes = range(most, most // 2, -1) if spec.m > most else [spec.m]
    best = min(sizes, key=lambda block: plan(block)[0])
    return best, plan(best)[1]


def padded(n: int) -> int:
    """Columns of the scores that are computed or filled: whole vectors."""
    return panels(n) * PANEL


@dataclass(frozen=True)
class _Kernel:
    """One task: some of the blocks of queries of one ``batch``."""

    cpu: Cpu
    spec: Attention
    q: tir.Buffer
    k: tir.Buffer
    v: tir.Buffer
    operands: list
    y: tir.Buffer
    lanes: int
    block: int
    plan: TilePlan
    batch: list

    def task(self, start, count: int) -> tir.Stmt:
        spec = self.spec
        keys = tir.scratch("keys", panels(spec.n), spec.d, PANEL)
        # An odd number of cache lines apart, rows share no sets of the cache.
        stride = (panels(spec.n) | 1) * PANEL
        scores = tir.scratch("scores", self.block, stride)
        factor = tir.scratch("factor", self.block)

        def one(i):
            first = start(i)
            norm = Normaliser(spec.normaliser, scores, factor, padded(spec.n), self.lanes, self.guard(first))
            stmts = [*self.score(first, keys, scores), *norm.body()]
            return tir.seq([*stmts, *self.attend(first, scores, factor)])

        buffers = [keys, scores, factor] if spec.normaliser == "softmax" else [keys, scores]
        return tir.seq([*tir.alloc(buffers), *self.turn(keys), tir.loop("block", count, one)])

    @property
    def deferred(self) -> bool:
        """Whether the rows of P are multiplied by a factor in the last store only."""
        return self.spec.normaliser == "softmax" and self.spec.guard == "S"

    # Keys -----------------------------------------------------------------------------------------

    def turn(self, keys: tir.Buffer) -> list[tir.Stmt]:
        """``keys[p, d, c] = K[16 p + c, d]``, 0 where there is no such key."""
        spec, side = self.spec, min(self.lanes, SQUARE)
        along = spec.k.strides[-1] != 1 and spec.k.strides[-2] == 1  # the keys are turned already
        stmts = []
        if spec.n % PANEL:
            last = tir.i64(panels(spec.n) - 1)
            stmts.append(
                tir.loop(
                    "d",
                    spec.d,
                    lambda d: tir.vector_loop(
                        PANEL, lambda c: tirx.BufferStore(keys, tir.f32(0.0), [last, d, c])
                    ),
                )
            )
        if along:
            whole, deep = spec.n // PANEL * PANEL, spec.d
            if whole:
                copy = lambda p, d: tir.vector_loop(PANEL, lambda c: self.copy(keys, p * PANEL + c, d, p, c))  # noqa: E731
                stmts.append(
                    tir.loop("p", spec.n // PANEL, lambda p: tir.loop("d", deep, lambda d: copy(p, d)))
                )
        else:
            whole, deep = spec.n // side * side, spec.d // side * side
            if spec.k.strides[-1] != 1:
                whole = deep = 0
            if whole and deep:

                def squares(r):
                    return tir.loop("d", deep // side, lambda d: self.square(keys, r * side, d * side, side))

                stmts.append(tir.loop("r", whole // side, squares))
        for rows_, columns in (((0, whole), (deep, spec.d)), ((whole, spec.n), (0, spec.d))):
            if rows_[0] < rows_[1] and columns[0] < columns[1]:
                stmts.append(
                    tir.loop(
                        "r",
                        rows_[1] - rows_[0],
                        lambda r, low=columns[0], high=columns[1]: tir.loop(
                            "d", high - low, lambda d: self.copy(keys, r, d), start=low
                        ),
                        start=rows_[0],
                    )
                )
        return stmts

    def copy(self, keys, row, d, panel=None, lane=None) -> tir.Stmt:
        if panel is None:
            panel, lane = tirx.floordiv(row, tir.i64(PANEL)), tirx.floormod(row, tir.i64(PANEL))
        value = tirx.BufferLoad(self.k, [self.spec.k.at([*self.batch, row, d])])
        return tirx.BufferStore(keys, value, [panel, d, lane])

    def square(self, keys, row, d, side: int) -> tir.Stmt:
        """Turns ``side`` keys by ``side`` values in registers."""
        stmts = []

        def bind(value):
            name = tirx.Var(f"s{len(stmts)}", value.ty)
            stmts.append(tirx.Bind(name, value))
            return name

        at = self.spec.k.at
        loaded = [
            bind(tir.vector_load(self.k, at([*self.batch, row + tir.i64(r), d]), lanes=side))
            for r in range(side)
        ]
        panel, lane = tirx.floordiv(row, tir.i64(PANEL)), tirx.floormod(row, tir.i64(PANEL))
        for step, value in enumerate(transpose(loaded, side, bind)):
            stmts.append(tir.vector_store(keys, value, panel, d + tir.i64(step), lane, lanes=side))
        return tir.seq(stmts)

    # Scores ---------------------------------------------------------------------------------------

    def score(self, first, keys, scores) -> list[tir.Stmt]:
        """``scores[r, j]`` of query ``first + r`` and all keys; -inf behind the last key."""
        spec = self.spec
        stmts = []
        if spec.n % PANEL:
            start = tir.i64(spec.n // PANEL * PANEL)
            low = tir.f32(float("-inf"))
            stmts.append(
                tir.loop(
                    "r",
                    self.block,
                    lambda r: tir.vector_loop(PANEL, lambda c: tirx.BufferStore(scores, low, [r, start + c])),
                )
            )
        coords, anchor = [tir.var("r"), tir.var("j")], tirx.Var("product", "float32")
        logical = [*self.batch, first + coords[0], coords[1]]

        def operand(which):
            return tirx.BufferLoad(self.operands[which], [spec.operands[which].at(logical)])

        epilogue = Epilogue(coords, anchor, [(scores, evaluate(spec.score, anchor, operand))])
        for panel, repeats, wide, columns in self.plan.parts(panels(spec.n), spec.n):

            def part(p, panel=panel, wide=wide, columns=columns):
                here = tir.i64(panel) + p * tir.i64(wide)
                return tile_loops(
                    self.block,
                    self.plan.most_rows(wide * PANEL),
                    lambda row, height: self.score_tile(
                        first, row, height, here, wide, columns, keys, epilogue
                    ),
                )

            stmts.append(tir.loop("panel", repeats, part))
        return stmts

    def score_tile(self, first, row, height, panel, wide, columns, keys, epilogue) -> tir.Stmt:
        tile = Tile(self.lanes, height, wide * PANEL)

        def step(d):
            def query(r, _):
                return tirx.BufferLoad(self.q, [self.spec.q.at([*self.batch, first + row + r, d])])

            def key(v):
                return tir.vector_load(keys, panel + v // PANEL, d, tir.i64(v % PANEL), lanes=self.lanes)

            return tile.multiply_add(query, key, span=tile.columns)

        def index(r, c):
            return [row + r, panel * tir.i64(PANEL) + c]

        finish = tile.finish(epilogue, index, columns)
        return tir.seq([*tile.allocate(), *tile.zero(), tir.loop("d", self.spec.d, step), *finish])

    def guard(self, first) -> Callable | None:
        """What the graph makes of P, of the block of queries from ``first`` on."""
        if self.spec.guard == "S":
            return None

        def guarded(row, value):
            logical = [*self.batch, first + row, tir.i64(0)]

            def operand(which):
                return tirx.BufferLoad(self.operands[which], [self.spec.operands[which].at(logical)])

            return evaluate(self.spec.guard, value, operand)

        return guarded

    # Values ---------------------------------------------------------------------------------------

    def attend(self, first, scores, factor) -> list[tir.Stmt]:
        """``Y = P V`` for the block of queries from ``first`` on."""
        spec = self.spec
        stride = tir.shape_of(scores)[1]
        plan = tile_plan(self.cpu, Extent(DENSE, spec.n, stride, self.block, spec.e, panels(spec.e)))
        return [
            tir.loop(
                "columns",
                repeats,
                lambda c, s=start, w=width: tile_loops(
                    self.block,
                    plan.most_rows(-(-w // PANEL) * PANEL),
                    lambda row, height: self.attend_tile(
                        first, row, height, tir.i64(s) + c * tir.i64(w), w, scores, factor
                    ),
                ),
            )
            for start, repeats, width in column_parts(spec.e, plan.panels * PANEL, self.lanes)
        ]

    def attend_tile(self, first, row, height, column, width, scores, factor) -> tir.Stmt:
        spec = self.spec
        tile = Tile(min(self.lanes, width), height, width)

        def step(j):
            def value(v):
                return tir.vector_load(
                    self.v, spec.v.at([*self.batch, j, column + tir.i64(v)]), lanes=tile.lanes
                )

            return tile.multiply_add(
                lambda r, _: tirx.BufferLoad(scores, [row + r, j]), value, span=tile.columns
            )

        def store(r, v):
            value = tir.load(tile.acc[r], v)
            if self.deferred:
                value = value * tirx.BufferLoad(factor, [row + tir.i64(r)])
            return tirx.BufferStore(self.y, value, spec.y_index(self.batch, first + row + r, column + v))

        stores = [
            tir.vector_loop(lanes, lambda v, r=r, off=off: store(r, off + v))
            for r in range(height)
            for off, lanes in pieces(width, tile.lanes)
        ]
        return tir.seq([*tile.allocate(), *tile.zero(), tir.loop("j", spec.n, step), *stores])
