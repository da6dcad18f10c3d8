"""Where the largest or smallest element along an axis is (ONNX operators ArgMax and ArgMin).

Each lane keeps the best value that it has seen and its index.  Along the last axis the lanes are folded at
the end of a row; along any other one each lane is a row of its own.

A NaN is never better than what was seen before it, and nothing is better than a NaN in the first place, as in
ONNX Runtime.
"""

from math import prod

from tvm import tirx

from sparsec.schedules import rows, tir, vector

#: Rows side by side, or elements of one; the vector units of every level take this in a few registers.
_LANES = 16
_UNROLL = 4
_COST = 3


def arg_extremum(
    shape: tuple[int, ...], dtype: str, axis: int, largest: bool = True, last: bool = False
) -> tirx.PrimFunc:
    """The function ``(X, Y)``, ready to build: ``Y`` is int64 of ``shape`` without ``axis``.

    ``X`` is ``dtype``, no half precision.  Of equal elements the first counts, or the ``last``.
    """
    axis = rows.normal_axis("arg_extremum", axis, len(shape))
    lead, extent, tail = shape[:axis], shape[axis], shape[axis + 1 :]
    x = tirx.decl_buffer([tir.i64(d) for d in shape], dtype, name="X")
    y = tirx.decl_buffer([tir.i64(d) for d in (*lead, *tail)], "int64", name="Y")
    best = _Best(dtype, largest, last)

    def read(o, k, i):
        return tir.load(x, *tir.unflatten(o, lead), k, *tir.unflatten(i, tail))

    def write(o, i, index):
        if dtype.startswith("float"):
            index = tirx.Select(tirx.isnan(read(o, tir.i64(0), i)), tir.i32(0), index)
        at = [*tir.unflatten(o, lead), *tir.unflatten(i, tail)]
        return tirx.BufferStore(y, index.astype("int64"), at)

    make = _along if prod(tail) == 1 else _across
    body = make(prod(lead), extent, prod(tail), prod(shape) * _COST, best, read, write)
    attrs = {tir.NOALIAS: True, tir.SCHEDULED: True, tir.OP_PATTERN: tir.OPAQUE, "s_tir": True}
    return tirx.PrimFunc([x, y], body).with_attrs(attrs)


class _Best:
    """Values and indices of the best elements, lane by lane."""

    def __init__(self, dtype: str, largest: bool, last: bool):
        self.dtype, self.largest, self.last = dtype, largest, last

    def start(self, width: int) -> list[tir.Stmt]:
        """Every lane at the first element, which nothing has been compared with yet."""
        self.value, self.index = (
            vector.stack("value", width, self.dtype),
            vector.stack("index", width, "int32"),
        )
        if self.dtype.startswith("float"):
            worst = tirx.const(float("-inf" if self.largest else "inf"), self.dtype)
        else:
            worst = (tirx.min_value if self.largest else tirx.max_value)(self.dtype)
        fill = tir.vector_loop(width, lambda l: tirx.BufferStore(self.value, worst, [l]))
        clear = tir.vector_loop(width, lambda l: tirx.BufferStore(self.index, tir.i32(0), [l]))
        return [*tir.alloc([self.value, self.index]), fill, clear]

    def offer(self, at, value, index) -> tir.Stmt:
        """Lane ``at`` sees ``value``, which stands behind all that it has seen."""
        old = tir.load(self.value, at)
        ahead = self._ahead(value, old)
        wins = tirx.Or(ahead, tirx.EQ(value, old)) if self.last else ahead
        return self._replace(at, wins, value, index)

    def fold(self, width: int) -> list[tir.Stmt]:
        """The best of all lanes into lane 0."""
        stmts = []
        while width > 1:
            width //= 2

            def lane(l, half=width):
                old, seen = tir.load(self.value, l), tir.load(self.index, l)
                value, index = (tir.load(b, l + tir.i64(half)) for b in (self.value, self.index))
                tie = tirx.And(tirx.EQ(value, old), index > seen if self.last else index < seen)
                return self._replace(l, tirx.Or(self._ahead(value, old), tie), value, index)

            stmts.append(tir.vector_loop(width, lane))
        return stmts

    def _ahead(self, a, b):
        return a > b if self.largest else a < b

    def _replace(self, at, wins, value, index) -> tir.Stmt:
        # The index first: its condition reads the old value.
        return tir.seq(
            [
                tirx.BufferStore(self.index, tirx.Select(wins, index, tir.load(self.index, at)), [at]),
                tirx.BufferStore(self.value, tirx.Select(wins, value, tir.load(self.value, at)), [at]),
            ]
        )


def _along(outer: int, extent: int, _, work: int, best: _Best, read, write) -> tir.Stmt:
    lanes = min(_LANES, vector.power_below(extent))
    unroll = min(_UNROLL, vector.power_below(max(1, extent // lanes)))
    width = lanes * unroll
    rounds = extent // width
    zero = tir.i64(0)

    def row(indices):
        (o,) = indices

        def see(base, slot: int):
            def lane(l):
                return best.offer(
                    tir.i64(slot * lanes) + l, read(o, base + l, zero), (base + l).astype("int32")
                )

            return tir.vector_loop(lanes, lane)

        def several(k):
            return tir.seq(see(k * tir.i64(width) + tir.i64(u * lanes), u) for u in range(unroll))

        rest = enumerate(range(rounds * width, extent, lanes))
        return tir.seq(
            [
                *best.start(width),
                tir.loop("k", rounds, several),
                *(see(tir.i64(min(start, extent - lanes)), slot) for slot, start in rest),
                *best.fold(width),
                write(o, zero, tir.load(best.index, zero)),
            ]
        )

    return vector.spread((outer,), work, row)


def _across(outer: int, extent: int, inner: int, work: int, best: _Best, read, write) -> tir.Stmt:
    lanes = min(_LANES, vector.power_below(inner))
    steps, unroll = vector.steps_for(inner, lanes, _UNROLL)

    def tile(indices):
        o, which = indices
        base = steps.start(which)

        def each(body):
            return tir.seq(
                tir.vector_loop(lanes, lambda l, u=u: body(tir.i64(u * lanes) + l)) for u in range(unroll)
            )

        def see(k):
            return each(lambda e: best.offer(e, read(o, k, base + e), k.astype("int32")))

        start = best.start(lanes * unroll)
        return tir.seq(
            [
                *start,
                tir.loop("k", extent, see),
                each(lambda e: write(o, base + e, tir.load(best.index, e))),
            ]
        )

    return vector.spread((outer, steps.count), work, tile)
