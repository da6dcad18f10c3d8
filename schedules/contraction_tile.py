"""The register tile of every contraction kernel: a few output rows by a few vectors of channels.

Each row of accumulators is a small local buffer at constant indices, which LLVM keeps in registers.  The
loop over the reduction is the caller's, and so are the addresses.
"""

import math
from collections.abc import Callable
from itertools import count

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.target import LINE, Cpu

#: Epilogues beyond this many nodes run as a loop over the rows of a tile instead of once per row in the code.
UNROLLED_EPILOGUE = 24


def even_split(total: int, most: int) -> list[tuple[int, int, int]]:
    """Cuts ``total`` into the fewest parts of at most ``most``, nearly equal: (start, count, size)."""
    parts = -(-total // most)
    size = -(-total // parts)
    small = parts * size - total
    cut = [(0, parts - small, size)]
    if small:
        cut.append(((parts - small) * size, small, size - 1))
    return cut


def tile_loops(total: int, most: int, make: Callable, share: tuple = (0, 1)) -> tir.Stmt:
    """``make(start, size)`` for every part of ``even_split(total, most)``, or for one task's share of them.

    ``share`` is (task, tasks); the task may be an expression, its bounds are then computed at run time.
    """
    cuts = even_split(total, most)
    task, tasks = share
    if tasks == 1:
        return tir.seq(
            tir.loop("tile", repeats, lambda t, s=start, z=size: make(s + t * z, z))
            for start, repeats, size in cuts
        )
    count, before, loops = sum(repeats for _, repeats, _ in cuts), 0, []
    low = tirx.floordiv(task * count, tir.i64(tasks))
    high = tirx.floordiv((task + 1) * count, tir.i64(tasks))
    for start, repeats, size in cuts:
        own = tirx.max(low, tir.i64(before))
        end = tirx.min(high, tir.i64(before + repeats))
        body = lambda t, s=start - before * size, z=size: make(s + t * z, z)  # noqa: E731
        loops.append(tir.loop("tile", tirx.max(end - own, tir.i64(0)), body, start=own))
        before += repeats
    return tir.seq(loops)


def fused(total, x, w):
    """The multiply-add of float32 values; LLVM makes one instruction of it."""
    return total + x * w


class Tile:
    """Accumulators of ``rows`` x ``columns`` in vectors of ``lanes``, and the statements on them."""

    def __init__(self, lanes: int, rows: int, columns: int, dtype: str = "float32"):
        self.lanes, self.rows, self.columns, self.dtype = lanes, rows, columns, dtype
        self.acc = [tir.local(f"acc{r}", columns, dtype=dtype) for r in range(rows)]

    def allocate(self) -> list[tir.Stmt]:
        return tir.alloc(self.acc)

    def vectors(self) -> range:
        """Offsets of the vectors of one row."""
        return range(0, self.columns, self.lanes)

    def prefetch(self, cpu: Cpu, epilogue: Epilogue, index: Callable, columns: int) -> list[tir.Stmt]:
        """Asks for what ``finish`` will read and write, where that is too much for the second-level cache.

        A tile writes few bytes a row, rows far apart: no hardware prefetcher sees it, and the stores of a
        tile that all miss cost more than its multiply-adds.
        """
        output = epilogue.outputs[0][0]
        size = tirx.const(0, tir.dtype_of(output)).ty.dtype.bits // 8
        if math.prod(tir.shape_of(output)) * size <= cpu.l2 // 2:
            return []
        return [
            stmt
            for r in range(self.rows)
            for column in range(0, columns, LINE * 4 // size)
            for stmt in epilogue.prefetches(index(tir.i64(r), tir.i64(column)))
        ]

    def zero(self) -> list[tir.Stmt]:
        nought = tir.broadcast(tirx.const(0, self.dtype), self.lanes)
        return [
            tir.vector_store(buffer, nought, tir.i64(v), lanes=self.lanes)
            for buffer in self.acc
            for v in self.vectors()
        ]

    def multiply_add(
        self, x: Callable, w: Callable, span: int, chosen=None, product: Callable = fused, vectors=None
    ) -> tir.Stmt:
        """``acc[r][v:] += x(r, v) * w(v)`` for rows ``chosen`` and ``vectors``, as ``product`` does it.

        ``w(v)`` is the vector of weights at channel ``v`` of the tile.  ``x(r, v)`` is a scalar, or a vector
        when the lanes see different activations; it is the same for ``span`` neighbouring channels.
        The default is all rows and all vectors.
        """
        rows = range(self.rows) if chosen is None else chosen
        vectors = self.vectors() if vectors is None else vectors
        stmts, fresh = [], count()

        def bind(value):
            name = tirx.Var(f"t{next(fresh)}", value.ty)
            stmts.append(tirx.Bind(name, value))
            return name

        def factor(r, v):
            value = bind(x(r, v))
            return tir.broadcast(value, self.lanes) if tir.lanes_of(value) == 1 else value

        def add(r, v, value, weight):
            old = tir.vector_load(self.acc[r], tir.i64(v), lanes=self.lanes)
            new = product(old, value, weight)
            stmts.append(tir.vector_store(self.acc[r], new, tir.i64(v), lanes=self.lanes))

        if span == self.columns and len(rows) < len(self.vectors()):
            # Fewer rows than vectors: the broadcasts stay in registers, and the weights pass.
            values = [bind(factor(r, 0)) for r in rows]
            for v in self.vectors():
                weight = bind(w(v))
                for r, value in zip(rows, values, strict=True):
                    add(r, v, value, weight)
            return tir.seq(stmts)
        weights = [bind(w(v)) for v in vectors]
        for r in rows:
            for v, weight in zip(vectors, weights, strict=True):
                if v % span == 0:
                    value = factor(r, v)
                add(r, v, value, weight)
        return tir.seq(stmts)

    def restore(self, buffer: tir.Buffer, index: Callable, columns: int) -> list[tir.Stmt]:
        """Loads the accumulators from ``buffer``; the opposite of ``save``."""
        return [
            tir.vector_loop(
                width,
                lambda v, r=r, off=off: tirx.BufferStore(
                    self.acc[r], tirx.BufferLoad(buffer, index(tir.i64(r), off + v)), [off + v]
                ),
            )
            for r in range(self.rows)
            for off, width in pieces(columns, self.lanes)
        ]

    def save(self, buffer: tir.Buffer, index: Callable, columns: int) -> list[tir.Stmt]:
        """Stores the raw accumulators at ``buffer[index(row, channel)]``, the first ``columns`` of them."""
        return [
            tir.vector_loop(
                width,
                lambda v, r=r, off=off: tirx.BufferStore(
                    buffer, tir.load(self.acc[r], off + v), index(tir.i64(r), off + v)
                ),
            )
            for r in range(self.rows)
            for off, width in pieces(columns, self.lanes)
        ]

    def finish(self, epilogue: Epilogue, index: Callable, columns: int) -> list[tir.Stmt]:
        """Evaluates ``epilogue`` on the accumulators; stores the first ``columns`` channels of every row."""
        if epilogue.cost > UNROLLED_EPILOGUE and epilogue.staging is not None:
            return self.save(epilogue.staging, index, columns) + [
                finish_staged(epilogue, self.rows, index, columns, self.lanes)
            ]
        if epilogue.cost > UNROLLED_EPILOGUE and self.rows > 1:
            raw = tir.scratch("raw", self.rows, self.columns, dtype=self.dtype)
            return [
                *tir.alloc([raw]),
                *self.save(raw, lambda r, c: [r, c], columns),
                finish_staged(epilogue, self.rows, index, columns, self.lanes, raw),
            ]
        return [
            tir.vector_loop(
                width,
                lambda v, r=r, off=off: tir.seq(
                    epilogue.stores(index(tir.i64(r), off + v), tir.load(self.acc[r], off + v))
                ),
            )
            for r in range(self.rows)
            for off, width in pieces(columns, self.lanes)
        ]


def finish_staged(
    epilogue: Epilogue, rows: int, index: Callable, columns: int, lanes: int, raw: tir.Buffer | None = None
) -> tir.Stmt:
    """The epilogue as a loop over ``rows`` whose raw values lie in ``raw``, else in ``epilogue.staging``."""

    def piece(row, off, width):
        def body(v):
            at = index(row, off + v)
            value = tirx.BufferLoad(epilogue.staging, at) if raw is None else tir.load(raw, row, off + v)
            return tir.seq(epilogue.stores(at, value))

        return tir.vector_loop(width, body)

    def row_body(row):
        whole = columns // lanes
        stmts = [tir.loop("vec", whole, lambda q: piece(row, q * lanes, lanes))] if whole else []
        stmts += [
            piece(row, tir.i64(off), width) for off, width in pieces(columns, lanes) if off >= whole * lanes
        ]
        return tir.seq(stmts)

    return tir.loop("row", rows, row_body)


def pieces(columns: int, lanes: int) -> list[tuple[tir.Expr, int]]:
    """Cuts ``columns`` into vectors whose lanes are powers of two: (offset, lanes)."""
    cut, start = [], 0
    while start < columns:
        width = min(lanes, 1 << (columns - start).bit_length() - 1)
        cut.append((start, width))
        start += width
    return cut
