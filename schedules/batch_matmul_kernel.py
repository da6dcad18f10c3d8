"""The kernel of a product of two activations: lanes over the columns of B, read in place.

A transposed B is turned block by block: 16 columns by 16 steps of k are transposed in registers into a small
buffer on the stack, from which all rows of A are served.  More than ``K_BLOCK`` steps are done in several rounds,
whose partial sums wait in the output.

The last tile of columns ends with the last column and may repeat columns of the tile before it.
"""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.batch_matmul import BatchMatmul
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_plan import TilePlan
from sparsec.schedules.contraction_tile import Tile, even_split, pieces
from sparsec.schedules.layout import PANEL
from sparsec.schedules.target import Cpu

#: Steps of k that are turned at once: 8 kB of stack per 16 columns.
K_BLOCK = 128
#: Rows of A worth a task of their own where there are few batches.
TASK_ROWS = 64


def batch_matmul_body(
    cpu: Cpu, spec: BatchMatmul, a: tir.Buffer, b: tir.Buffer, epilogue: Epilogue, plan: TilePlan
) -> tir.Stmt:
    lanes = min(cpu.lanes, PANEL)
    turned = spec.b_by_columns and epilogue.staging is not None
    chunks = 1 if spec.batches >= 8 else max(1, spec.m // TASK_ROWS)
    kernel = _Kernel(spec, a, b, epilogue, plan, lanes)

    def task(t):
        batch = tir.unflatten(tirx.floordiv(t, tir.i64(chunks)), spec.batch)
        chunk = tirx.floormod(t, tir.i64(chunks))
        cuts = even_split(spec.m, -(-spec.m // chunks))
        if len(cuts) == 1:
            return kernel.rows(batch, chunk * cuts[0][2], cuts[0][2], turned)
        (_, many, height), (start, _, less) = cuts
        return tirx.IfThenElse(
            chunk < many,
            kernel.rows(batch, chunk * height, height, turned),
            kernel.rows(batch, start + (chunk - many) * less, less, turned),
        )

    tasks = spec.batches * chunks
    return tir.loop("task", tasks, task, "PARALLEL" if tasks > 1 else "SERIAL")


class _Kernel:
    def __init__(self, spec, a, b, epilogue, plan, lanes):
        self.spec, self.a, self.b, self.epilogue, self.plan, self.lanes = spec, a, b, epilogue, plan, lanes

    def rows(self, batch, first, count: int, turned: bool) -> tir.Stmt:
        """``count`` rows of one batch."""
        make = self._turned_columns if turned else self._columns
        return tir.seq(
            tir.loop("columns", repeats, lambda c, s=start, w=width: make(batch, first, count, s + c * w, w))
            for start, repeats, width in self._column_parts(turned)
        )

    def _column_parts(self, turned: bool) -> list[tuple[int, int, int]]:
        n, wide = self.spec.n, self.plan.panels * PANEL
        parts = [(0, n // wide, wide)] if n >= wide else []
        rest = n % wide
        width = -(-rest // PANEL) * PANEL
        if rest and n >= width:
            parts.append((n - width, 1, width))
        elif rest and turned:
            parts.append((0, 1, n))
        elif rest:
            parts += [(start, 1, size) for start, size in pieces(n, self.lanes)]
        return parts

    def _tiles(self, first, count: int, columns: int, make) -> tir.Stmt:
        most = self.plan.most_rows(-(-columns // PANEL))
        return tir.seq(
            tir.loop("tile", repeats, lambda t, s=start, h=height: make(first + s + t * h, h))
            for start, repeats, height in even_split(count, most)
        )

    def _columns(self, batch, first, count: int, column, width: int) -> tir.Stmt:
        spec = self.spec

        # Columns that are no neighbours in memory are collected first, one row of B at a time.
        scattered = bool(spec.b_order) and spec.b_order[-1] != len(spec.batch) + 1

        def one(row, height):
            tile = Tile(min(self.lanes, width), height, width)
            collected = tir.local("collected", width)

            def step(k):
                def weight(v):
                    if scattered:
                        return tir.vector_load(collected, tir.i64(v), lanes=tile.lanes)
                    return tir.vector_load(self.b, *spec.b_index(batch, k, column + v), lanes=tile.lanes)

                def collect(c):
                    value = tirx.BufferLoad(self.b, spec.b_index(batch, k, column + c))
                    return tirx.BufferStore(collected, value, [c])

                product = tile.multiply_add(
                    lambda r, v: tirx.BufferLoad(self.a, spec.a_index(batch, row + r, k)), weight, span=width
                )
                return tir.seq([tir.loop("c", width, collect), product]) if scattered else product

            def index(r, c):
                return spec.y_index(batch, row + r, column + c)

            finish = tile.finish(self.epilogue, index, width)
            own = [*tile.allocate(), *(tir.alloc([collected]) if scattered else [])]
            return tir.seq([*own, *tile.zero(), tir.loop("k", spec.k, step), *finish])

        return self._tiles(first, count, width, one)

    def _turned_columns(self, batch, first, count: int, column, width: int) -> tir.Stmt:
        rounds = even_split(self.spec.k, K_BLOCK)
        starts = [start + r * size for start, repeats, size in rounds for r in range(repeats)]
        sizes = [size for _, repeats, size in rounds for _ in range(repeats)]
        return tir.seq(
            self._turned_round(batch, first, count, column, width, start, size)
            for start, size in zip(starts, sizes, strict=True)
        )

    def _turned_round(self, batch, first, count, column, width: int, k0: int, depth: int) -> tir.Stmt:
        spec = self.spec
        panels = -(-width // PANEL)
        blocks = [
            [tir.local(f"turned{p}_{q}", PANEL, PANEL) for q in range(-(-depth // PANEL))]
            for p in range(panels)
        ]
        stmts = tir.alloc(buffer for panel in blocks for buffer in panel)
        for p, panel in enumerate(blocks):
            for q, buffer in enumerate(panel):
                stmts.append(self._turn(batch, buffer, column + p * PANEL, width - p * PANEL, k0 + q * PANEL))

        def one(row, height):
            tile = Tile(self.lanes, height, panels * PANEL)

            def index(r, c):
                return spec.y_index(batch, row + r, column + c)

            def steps(q):
                return tir.loop("k", min(PANEL, depth - q * PANEL), lambda kk: step(q, kk))

            def step(q, kk):
                return tile.multiply_add(
                    lambda r, v: tirx.BufferLoad(self.a, spec.a_index(batch, row + r, kk + (k0 + q * PANEL))),
                    lambda v: tir.vector_load(
                        blocks[v // PANEL][q], kk, tir.i64(v % PANEL), lanes=tile.lanes
                    ),
                    span=tile.columns,
                )

            start = tile.zero()
            if k0 > 0:
                start += tile.restore(self.epilogue.staging, index, width)
            last = k0 + depth == spec.k
            end = (
                tile.finish(self.epilogue, index, width)
                if last
                else tile.save(self.epilogue.staging, index, width)
            )
            return tir.seq([*tile.allocate(), *start, *(steps(q) for q in range(len(blocks[0]))), *end])

        return tir.seq([*stmts, self._tiles(first, count, width, one)])

    def _turn(self, batch, buffer: tir.Buffer, column, columns: int, k0: int) -> tir.Stmt:
        """Fills ``buffer[kk, c]`` with ``B[k0 + kk, column + c]``; what lies outside becomes 0."""
        spec, lanes = self.spec, self.lanes
        steps = min(PANEL, spec.k - k0)
        if columns < PANEL or steps < PANEL:
            return self._turn_slowly(batch, buffer, column, min(columns, PANEL), k0, steps)

        def corner(c0):
            return tir.loop(
                "k1", PANEL // lanes, lambda k1: self._turn_square(batch, buffer, column, k0, c0, k1 * lanes)
            )

        return tir.loop("c0", PANEL // lanes, lambda c: corner(c * lanes))

    def _turn_slowly(self, batch, buffer: tir.Buffer, column, columns: int, k0: int, steps: int) -> tir.Stmt:
        def zero(kk, c):
            return tirx.BufferStore(buffer, tir.f32(0.0), [kk, c])

        def copy(kk, c):
            value = tirx.BufferLoad(self.b, self.spec.b_index(batch, kk + k0, column + c))
            return tirx.BufferStore(buffer, value, [kk, c])

        clear = tir.loop("kk", PANEL, lambda kk: tir.vector_loop(PANEL, lambda c: zero(kk, c)))
        fill = tir.loop("kk", steps, lambda kk: tir.loop("c", columns, lambda c: copy(kk, c)))
        return tir.seq([clear, fill] if columns < PANEL else [fill])

    def _turn_square(self, batch, buffer, column, k0: int, c0, k1) -> tir.Stmt:
        lanes, stmts = self.lanes, []

        def bind(value):
            name = tirx.Var(f"s{len(stmts)}", value.ty)
            stmts.append(tirx.Bind(name, value))
            return name

        rows = [
            bind(tir.vector_load(self.b, *self.spec.b_index(batch, k1 + k0, column + c0 + c), lanes=lanes))
            for c in range(lanes)
        ]
        columns = transpose(rows, lanes, bind)
        stores = [
            tir.vector_store(buffer, value, k1 + step, c0, lanes=lanes) for step, value in enumerate(columns)
        ]
        return tir.seq([*stmts, *stores])


def transpose(rows: list, lanes: int, bind) -> list:
    """The transposed square of ``lanes`` vectors: swaps off-diagonal blocks of 1, 2, 4, ... elements."""
    size = 1
    while size < lanes:
        for upper in (r for r in range(lanes) if not r & size):
            first, second = rows[upper], rows[upper + size]
            low = [j if not j & size else lanes + j - size for j in range(lanes)]
            high = [j + size if not j & size else lanes + j for j in range(lanes)]
            rows[upper] = bind(tirx.Shuffle([first, second], [tir.i32(j) for j in low]))
            rows[upper + size] = bind(tirx.Shuffle([first, second], [tir.i32(j) for j in high]))
        size *= 2
    return rows
