"""The kernel of a product of two activations: lanes over the columns of B, read in place.

A transposed B is turned block by block: 16 columns by 8 steps of k are transposed in registers into a small
buffer on the stack, from which all rows of A are served.  More than ``K_BLOCK`` steps are done in several
rounds, whose partial sums wait in the output.

The last tile of columns ends with the last column and may repeat columns of the tile before it.
"""

from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.batch_matmul import BatchMatmul
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_plan import TilePlan
from sparsec.schedules.contraction_tile import Tile, finish_staged, pieces, tile_loops
from sparsec.schedules.layout import PANEL
from sparsec.schedules.target import Cpu

#: Steps of k that are turned at once: 4 kB of stack per 16 columns.
K_BLOCK = 64
#: B is turned in squares of 8, into buffers of 8 steps by 16 columns: TVM keeps less than 1 kB on the stack.
SQUARE, DEEP = 8, 8
#: From this many batches on each one is a task; below, rows are shared out, ``TASK_ROWS`` to a task.
MANY_BATCHES, TASK_ROWS = 8, 64


def batch_matmul_body(
    cpu: Cpu, spec: BatchMatmul, a: tir.Buffer, b: tir.Buffer, epilogue: Epilogue, plan: TilePlan
) -> tir.Stmt:
    turned = spec.b_by_columns and epilogue.staging is not None
    tasks = 1 if spec.batches >= MANY_BATCHES else max(1, spec.m // TASK_ROWS)

    def task(t):
        batch = tir.unflatten(tirx.floordiv(t, tir.i64(tasks)), spec.batch)
        share = (tirx.floormod(t, tir.i64(tasks)) if tasks > 1 else 0, tasks)
        kernel = _Kernel(spec, a, b, epilogue, plan, min(cpu.lanes, PANEL), batch, share)
        if turned:
            return kernel.by_columns(kernel.turned_columns, True)
        # A small B stays in the first-level cache while the rows of A pass once.
        if 4 * spec.k * spec.n <= cpu.l1:
            return kernel.by_rows()
        return kernel.by_columns(kernel.columns, False)

    total = spec.batches * tasks
    return tir.loop("task", total, task, "PARALLEL" if total > 1 else "SERIAL")


@dataclass(frozen=True)
class _Kernel:
    """One task: its ``share`` of the rows of one ``batch``."""

    spec: BatchMatmul
    a: tir.Buffer
    b: tir.Buffer
    epilogue: Epilogue
    plan: TilePlan
    lanes: int
    batch: list
    share: tuple

    def by_columns(self, make, turned: bool) -> tir.Stmt:
        return tir.seq(
            tir.loop("columns", repeats, lambda c, s=start, w=width: make(s + c * w, w))
            for start, repeats, width in column_parts(
                self.spec.n, self.plan.panels * PANEL, self.lanes, turned
            )
        )

    def by_rows(self) -> tir.Stmt:
        def all_columns(row, height):
            return tir.seq(
                tir.loop("columns", repeats, lambda c, s=start, w=width: self.tile(row, height, s + c * w, w))
                for start, repeats, width in column_parts(self.spec.n, self.plan.panels * PANEL, self.lanes)
            )

        return tile_loops(self.spec.m, self.plan.most_rows(self.plan.panels * PANEL), all_columns, self.share)

    def _tiles(self, columns: int, make) -> tir.Stmt:
        return tile_loops(self.spec.m, self.plan.most_rows(-(-columns // PANEL) * PANEL), make, self.share)

    def columns(self, column, width: int) -> tir.Stmt:
        return self._tiles(width, lambda row, height: self.tile(row, height, column, width))

    def tile(self, row, height: int, column, width: int) -> tir.Stmt:
        """``height`` rows by ``width`` columns of the product."""
        spec, batch = self.spec, self.batch
        # Columns that are no neighbours in memory are collected first, one row of B at a time.
        scattered = bool(spec.b_order) and spec.b_order[-1] != len(spec.batch) + 1
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

        own = [*tile.allocate(), *(tir.alloc([collected]) if scattered else [])]
        finish = tile.finish(self.epilogue, index, width)
        return tir.seq([*own, *tile.zero(), tir.loop("k", spec.k, step), *finish])

    def turned_columns(self, column, width: int) -> tir.Stmt:
        rounds, rest = divmod(self.spec.k, K_BLOCK)
        if rounds + (rest > 0) == 1:
            return self._turned_round(column, width, 0, self.spec.k, only=True)
        waiting = self.epilogue.staging

        def index(row):
            return lambda r, c: self.spec.y_index(self.batch, row + r, column + c)

        def clear(row, height):
            def zeros(r):
                return tir.seq(
                    tir.vector_loop(
                        lanes,
                        lambda v, off=off: tirx.BufferStore(waiting, tir.f32(0.0), index(row)(r, off + v)),
                    )
                    for off, lanes in pieces(width, self.lanes)
                )

            return tir.loop("row", height, zeros)

        def finish(row, height):
            return finish_staged(self.epilogue, height, index(row), width, self.lanes)

        stmts = [self._tiles(width, clear)]
        stmts.append(
            tir.loop(
                "round", rounds, lambda r: self._turned_round(column, width, r * K_BLOCK, K_BLOCK, only=False)
            )
        )
        if rest:
            stmts.append(self._turned_round(column, width, rounds * K_BLOCK, rest, only=False))
        return tir.seq([*stmts, self._tiles(width, finish)])

    def _turned_round(self, column, width: int, k0, depth: int, only: bool) -> tir.Stmt:
        """``depth`` steps from ``k0`` on: the ``only`` ones, or added to the sums that wait in the output."""
        spec, batch = self.spec, self.batch
        panels = -(-width // PANEL)
        depths = [min(DEEP, depth - start) for start in range(0, depth, DEEP)]
        blocks = [
            [tir.local(f"turned{p}_{q}", DEEP, PANEL) for q in range(len(depths))] for p in range(panels)
        ]
        stmts = tir.alloc(buffer for panel in blocks for buffer in panel)
        for p, panel in enumerate(blocks):
            for q, buffer in enumerate(panel):
                columns = min(PANEL, width - p * PANEL)
                stmts.append(self._turn(buffer, column + p * PANEL, columns, k0 + q * DEEP, depths[q]))

        def one(row, height):
            tile = Tile(self.lanes, height, panels * PANEL)

            def index(r, c):
                return spec.y_index(batch, row + r, column + c)

            def step(q, kk):
                return tile.multiply_add(
                    lambda r, v: tirx.BufferLoad(self.a, spec.a_index(batch, row + r, kk + (k0 + q * DEEP))),
                    lambda v: tir.vector_load(
                        blocks[v // PANEL][q], kk, tir.i64(v % PANEL), lanes=tile.lanes
                    ),
                    span=tile.columns,
                )

            steps = [tir.loop("k", size, lambda kk, q=q: step(q, kk)) for q, size in enumerate(depths)]
            if only:
                around = tile.zero(), tile.finish(self.epilogue, index, width)
            else:
                waiting = self.epilogue.staging
                around = (
                    [*tile.zero(), *tile.restore(waiting, index, width)],
                    tile.save(waiting, index, width),
                )
            return tir.seq([*tile.allocate(), *around[0], *steps, *around[1]])

        return tir.seq([*stmts, self._tiles(width, one)])

    def _turn(self, buffer: tir.Buffer, column, columns: int, k0, steps: int) -> tir.Stmt:
        """Fills ``buffer[kk, c]`` with ``B[k0 + kk, column + c]``; columns from ``columns`` on become 0."""
        lanes = min(self.lanes, SQUARE)
        if columns < PANEL or steps < DEEP:
            return self._turn_slowly(buffer, column, columns, k0, steps)

        def square(c, k):
            return self._turn_square(buffer, column, k0, c * lanes, k * lanes)

        return tir.loop("c", PANEL // lanes, lambda c: tir.loop("k", DEEP // lanes, lambda k: square(c, k)))

    def _turn_slowly(self, buffer: tir.Buffer, column, columns: int, k0, steps: int) -> tir.Stmt:
        def zero(kk, c):
            return tirx.BufferStore(buffer, tir.f32(0.0), [kk, c])

        def copy(kk, c):
            value = tirx.BufferLoad(self.b, self.spec.b_index(self.batch, kk + k0, column + c))
            return tirx.BufferStore(buffer, value, [kk, c])

        clear = tir.loop("kk", DEEP, lambda kk: tir.vector_loop(PANEL, lambda c: zero(kk, c)))
        fill = tir.loop("kk", steps, lambda kk: tir.loop("c", columns, lambda c: copy(kk, c)))
        return tir.seq([clear, fill] if columns < PANEL else [fill])

    def _turn_square(self, buffer, column, k0, c0, k1) -> tir.Stmt:
        lanes, stmts = min(self.lanes, SQUARE), []

        def bind(value):
            name = tirx.Var(f"s{len(stmts)}", value.ty)
            stmts.append(tirx.Bind(name, value))
            return name

        rows = [
            bind(
                tir.vector_load(self.b, *self.spec.b_index(self.batch, k1 + k0, column + c0 + c), lanes=lanes)
            )
            for c in range(lanes)
        ]
        columns = transpose(rows, lanes, bind)
        stores = [
            tir.vector_store(buffer, value, k1 + step, c0, lanes=lanes) for step, value in enumerate(columns)
        ]
        return tir.seq([*stmts, *stores])


def column_parts(n: int, wide: int, lanes: int, turned: bool = False) -> list[tuple[int, int, int]]:
    """Cuts ``n`` columns into tiles of at most ``wide``: (start, repeats, width); the last may overlap."""
    parts = [(0, n // wide, wide)] if n >= wide else []
    rest = n % wide
    width = -(-rest // PANEL) * PANEL
    if rest and n >= width:
        parts.append((n - width, 1, width))
    elif rest and turned:
        parts.append((0, 1, n))
    elif rest:
        parts += [(start, 1, size) for start, size in pieces(n, lanes)]
    return parts


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
