"""The kernel of attention: a block of queries against all keys, its scores in the second-level cache at most.

A task takes one batch.  It turns the keys once into panels of 16 (lanes over keys), then for every block of
queries: products with all keys, scored on the registers; the normaliser over the rows in place; products
with the values, which are read where they lie, or staged where they are narrow.  Softmax is divided by its
sum only in the last store, unless P is changed before.

The scores have room for whole vectors of keys; what is behind the last key is -inf, and so no row has a tail.
The last block of queries may repeat queries of the block before it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir, vector
from sparsec.schedules.attention import FACTOR, ZERO, Attention, evaluate, spec_of
from sparsec.schedules.attention_bytes import Corrections
from sparsec.schedules.attention_operands import Form, Keys, Source, form_of, staged
from sparsec.schedules.attention_rows import TOGETHER, Normaliser
from sparsec.schedules.batch_matmul_kernel import MANY_BATCHES, column_parts
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_plan import Extent, TilePlan, tile_plan, tile_plans
from sparsec.schedules.contraction_tile import Tile, pieces, tile_loops
from sparsec.schedules.halves import BFLOAT16
from sparsec.schedules.layout import DENSE, PANEL, panels
from sparsec.schedules.target import Cpu

#: Most queries of a block; enough that a panel of keys, once in the first-level cache, serves many.
MOST_ROWS = 64


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """The scheduled kernel of a definition of ``Attention``, with the same parameters."""
    spec = spec_of(func)
    if spec is None or 0 in (*spec.y_shape, spec.n, spec.d):
        return None
    if spec.y_dtype != "float32" or spec.narrow and spec.half != BFLOAT16.name:
        return None  # GPUs' own: a CPU only checks them
    q, k, v, *operands, y = func.params
    numbers = operands.pop() if spec.numbers else None
    lanes = min(cpu.lanes, PANEL)
    block, plan = block_plan(cpu, spec)
    blocks = vector.Steps(spec.m, block)
    shares = _shares(blocks.count, -(-MANY_BATCHES // spec.batches))
    own = blocks.count // shares

    def task(indices):
        *batch, share = indices
        kernel = _Kernel(cpu, spec, q, k, v, operands, numbers, y, lanes, block, plan, batch)
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
        element = form_of(cpu, spec).element
        stride = spec.q.strides[-2] // element.group
        extent = Extent(DENSE, spec.d, stride, block, width, panels(spec.n), element=element)
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
    numbers: tir.Buffer | None
    y: tir.Buffer
    lanes: int
    block: int
    plan: TilePlan
    batch: list

    def task(self, start, count: int) -> tir.Stmt:
        spec, form = self.spec, self.form

        def one(i):
            first = start(i)
            stmts = self.stage_queries(first) if form.widened else []
            stmts += self.score(first)
            narrow, guard = self.shares if form.words else None, self.guard(first)
            width = padded(spec.n)
            norm = Normaliser(
                spec.normaliser,
                spec.alpha,
                self.scores,
                self.factor,
                width,
                self.lanes,
                guard,
                narrow,
                self.corrections,
            )
            return tir.seq([*stmts, *norm.body(), *self.attend(first)])

        buffers = [self.keys, self.scores]
        buffers += [self.factor] if spec.normaliser == "softmax" else []
        buffers += [self.values] if form.narrow else []
        buffers += [self.shares] if form.words else []
        buffers += [self.queries] if form.widened else []
        stmts = Keys(form, spec, self.source("k"), self.batch, self.keys, self.lanes).turn()
        stmts += self.stage_values() if form.narrow else []
        if self.corrections:
            buffers += self.corrections.buffers
            stmts += self.corrections.of_keys(self.keys) + self.corrections.of_columns(self.values)
        return tir.seq([*tir.alloc(buffers), *stmts, tir.loop("block", count, one)])

    # Buffers --------------------------------------------------------------------------------------

    @functools.cached_property
    def keys(self) -> tir.Buffer:
        steps = self.form.steps(self.spec.d)
        return tir.scratch("keys", panels(self.spec.n), steps, PANEL, dtype=self.form.dtype)

    @functools.cached_property
    def queries(self) -> tir.Buffer:
        """A block of them, widened."""
        return tir.scratch("queries", self.block, self.spec.d)

    @functools.cached_property
    def values(self) -> tir.Buffer:
        """All of them, widened or as words."""
        columns = panels(self.spec.e) * PANEL
        return tir.scratch("values", self.form.steps(self.spec.n), columns, dtype=self.form.dtype)

    @functools.cached_property
    def scores(self) -> tir.Buffer:
        return tir.scratch("scores", self.block, self.row)

    @functools.cached_property
    def shares(self) -> tir.Buffer:
        """P as its products read it."""
        if not self.form.words:
            return self.scores
        return tir.scratch("shares", self.block, self.row, dtype=self.spec.q.dtype)

    @functools.cached_property
    def corrections(self) -> Corrections | None:
        if not (self.form.words and self.form.bytes):
            return None
        return Corrections.make(self.form, self.spec, self.numbers, self.block)

    @functools.cached_property
    def factor(self) -> tir.Buffer:
        return tir.scratch("factor", self.block)

    @property
    def row(self) -> int:
        """Columns of a row of scores: an odd number of cache lines apart, rows share no sets of the cache."""
        return (panels(self.spec.n) | 1) * PANEL

    @property
    def form(self) -> Form:
        return form_of(self.cpu, self.spec)

    @property
    def deferred(self) -> bool:
        """Whether the rows of P are multiplied by a factor in the last store only."""
        return self.spec.normaliser == "softmax" and self.spec.guard == "S"

    def source(self, name: str) -> Source:
        """Q, K or V as operands of products."""
        buffer = getattr(self, name)
        if not self.form.bytes:
            return Source(buffer)
        return Source(buffer, tir.load(self.numbers, tir.i64(ZERO[name])), name != "q")

    def leaves(self, logical: list) -> dict[str, Callable]:
        """What the expressions of scores and of P read at an index."""

        def operand(which):
            return tirx.BufferLoad(self.operands[which], [self.spec.operands[which].at(logical)])

        return {"operand": operand, "number": lambda which: tir.load(self.numbers, tir.i64(which))}

    def query(self, first) -> Callable:
        """Where value ``c`` of row ``r`` of the block of queries from ``first`` on lies."""
        return lambda r, c: self.spec.q.at([*self.batch, first + r, c])

    def stage_queries(self, first) -> list[tir.Stmt]:
        source = self.source("q")
        return staged(self.form, source, self.query(first), self.block, self.spec.d, self.queries)

    def stage_values(self) -> list[tir.Stmt]:
        def place(j, c):
            return self.spec.v.at([*self.batch, j, c])

        return staged(self.form, self.source("v"), place, self.spec.n, self.spec.e, self.values)

    # Scores ---------------------------------------------------------------------------------------

    def score(self, first) -> list[tir.Stmt]:
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
                    lambda r: tir.vector_loop(
                        PANEL, lambda c: tirx.BufferStore(self.scores, low, [r, start + c])
                    ),
                )
            )
        coords, anchor = [tir.var("r"), tir.var("j")], tirx.Var("product", self.form.element.sums)
        value, added = anchor, self.corrections
        if added:
            stmts += added.of_queries(self.source("q"), self.query(first), self.block)
            both = tir.load(added.queries, coords[0]) + tir.load(added.keys, coords[1])
            value = (anchor + both).astype("float32")
        leaves = self.leaves([*self.batch, first + coords[0], coords[1]])
        epilogue = Epilogue(coords, anchor, [(self.scores, evaluate(spec.score, value, leaves))])
        for panel, repeats, wide, columns in self.plan.parts(panels(spec.n), spec.n):

            def part(p, panel=panel, wide=wide, columns=columns):
                here = tir.i64(panel) + p * tir.i64(wide)
                return tile_loops(
                    self.block,
                    self.plan.most_rows(wide * PANEL),
                    lambda row, height: self.score_tile(first, row, height, here, wide, columns, epilogue),
                )

            stmts.append(tir.loop("panel", repeats, part))
        return stmts

    def score_tile(self, first, row, height, panel, wide, columns, epilogue) -> tir.Stmt:
        form = self.form
        tile = Tile(self.lanes, height, wide * PANEL, form.element.sums)

        def step(s, values):
            def query(r, _):
                if form.widened:
                    return tirx.BufferLoad(self.queries, [row + r, s])
                places = [self.query(first)(row + r, s * form.group + i) for i in range(values)]
                return form.value(self.source("q"), places, self.spec.q.strides[-1] == 1)

            def key(v):
                return tir.vector_load(self.keys, panel + v // PANEL, s, tir.i64(v % PANEL), lanes=self.lanes)

            return tile.multiply_add(query, key, tile.columns, product=form.product)

        def index(r, c):
            return [row + r, panel * tir.i64(PANEL) + c]

        finish = tile.finish(epilogue, index, columns)
        return tir.seq([*tile.allocate(), *tile.zero(), *form.each_step(self.spec.d, step), *finish])

    def guard(self, first) -> Callable | None:
        """What the graph makes of P, of the block of queries from ``first`` on."""
        if self.spec.guard == "S":
            return None

        def guarded(row, value):
            return evaluate(self.spec.guard, value, self.leaves([*self.batch, first + row, tir.i64(0)]))

        return guarded

    # Values ---------------------------------------------------------------------------------------

    def attend(self, first) -> list[tir.Stmt]:
        """``Y = P V`` for the block of queries from ``first`` on."""
        spec = self.spec
        element = self.form.element
        stride = self.row // element.group
        extent = Extent(DENSE, spec.n, stride, self.block, spec.e, panels(spec.e), element=element)
        plan = tile_plan(self.cpu, extent)
        if self.form.narrow:  # staged, with room for whole vectors
            parts = [
                (panel * PANEL, repeats, wide * PANEL, columns)
                for panel, repeats, wide, columns in plan.parts(panels(spec.e), spec.e)
            ]
        else:
            parts = [(*part, part[-1]) for part in column_parts(spec.e, plan.panels * PANEL, self.lanes)]
        tile = functools.partial(self.attend_tile, first)
        return [
            tir.loop(
                "columns",
                repeats,
                lambda c, s=start, w=width, n=columns: tile_loops(
                    self.block,
                    plan.most_rows(-(-w // PANEL) * PANEL),
                    lambda row, height: tile(row, height, tir.i64(s) + c * tir.i64(w), w, n),
                ),
            )
            for start, repeats, width, columns in parts
        ]

    def attend_tile(self, first, row, height, column, width, columns) -> tir.Stmt:
        spec, form = self.spec, self.form
        tile = Tile(min(self.lanes, width), height, width, form.element.sums)

        def step(s):
            def share(r, _):
                if form.words:  # what is behind the last key meets values of 0
                    return form.element.word(self.cpu, self.shares, [[row + r, s * form.group]], True)
                return tirx.BufferLoad(self.shares, [row + r, s])

            def value(v):
                if form.narrow:
                    return tir.vector_load(self.values, s, column + tir.i64(v), lanes=tile.lanes)
                place = spec.v.at([*self.batch, s, column + tir.i64(v)])
                return tir.vector_load(self.v, place, lanes=tile.lanes)

            return tile.multiply_add(share, value, tile.columns, product=form.product)

        def store(r, v):
            value = tir.load(tile.acc[r], v)
            if added := self.corrections:
                both = tir.load(added.shares, row + tir.i64(r)) + tir.load(added.columns, column + v)
                value = (value + both).astype("float32")
            if form.bytes:
                value = value * tir.load(self.numbers, tir.i64(FACTOR))
            if self.deferred:
                value = value * tirx.BufferLoad(self.factor, [row + tir.i64(r)])
            return tirx.BufferStore(self.y, value, spec.y_index(self.batch, first + row + r, column + v))

        stores = [
            tir.vector_loop(lanes, lambda v, r=r, off=off: store(r, off + v))
            for r in range(height)
            for off, lanes in pieces(columns, tile.lanes)
        ]
        return tir.seq([*tile.allocate(), *tile.zero(), tir.loop("s", form.steps(spec.n), step), *stores])
