"""The k largest or smallest elements of rows: a warp or a block finds one after another.

What comes next is the best of the elements behind the last one found, in the order of values and, where they
are equal, of places.  So k elements take k folds of a row that lies in registers; even for all of them that
is faster than what one thread could do for a row.
"""

import math

from tvm import tirx

from sparsec.schedules import rows, tir
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.row import MemoryRow
from sparsec.schedules.cuda.target import Gpu

#: Places are counted in float32.
_LONGEST = 1 << 24
#: The most threads of a row: with more there would be too few registers for values and their places.
_THREADS = 512
_LOW, _HIGH = tir.f32(float("-inf")), tir.f32(float("inf"))


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The kernel of ``top_k`` along the last axis; None for other functions, axes and types."""
    if not rows.is_op(func, "top_k"):
        return None
    x, values, indices = func.params
    shape, axis = tir.shape_of(x), int(func.attrs["sparsec.axis"])
    if 0 in shape or axis != len(shape) - 1 or shape[-1] > _LONGEST or tir.dtype_of(x) != "float32":
        return None
    sign = tir.f32(1.0 if bool(func.attrs["sparsec.largest"]) else -1.0)
    row = MemoryRow.of(x, values, axis)
    if row.threads > _THREADS:
        row = MemoryRow(x, values, axis, _THREADS, row.width)
    body = row.kernel(lambda: _steps(row, values, indices, sign))
    # Indices stay wide, as the buffer is that they go to.
    made = tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)
    return made.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


def _steps(row: MemoryRow, values: tir.Buffer, indices: tir.Buffer, sign: tir.Expr) -> list[tir.Stmt]:
    best, place, last, last_place = (row.number(n) for n in ("best", "place", "last", "last_place"))

    def place_of(at) -> tir.Expr:
        return at.astype("int32").astype("float32")

    def behind(x, at):
        """Whether an element comes after the last one that was found; a NaN never does."""
        return tirx.any(x < last.value, tirx.all(tirx.EQ(x, last.value), place_of(at) > last_place.value))

    def candidate(x, at):
        return tirx.Select(behind(sign * x, at), sign * x, _LOW)

    def its_place(x, at):
        found = tirx.all(behind(sign * x, at), tirx.EQ(sign * x, best.value))
        return tirx.Select(found, place_of(at), _HIGH)

    def find(i):
        # Where only NaN are left, any of them is next.
        at = tirx.Min(place.value, tir.f32(row.extent - 1)).astype("int64")
        store = [
            tirx.BufferStore(values, sign * best.value, [*row.at, i]),
            tirx.BufferStore(indices, at, [*row.at, i]),
        ]
        return tir.seq(
            [
                *row.fold_places(best, -math.inf, tirx.Max, candidate),
                *row.fold_places(place, math.inf, tirx.Min, its_place),
                ptx.when(row.thread < 1, tir.seq(store)),
                last.set(best.value),
                last_place.set(place.value),
            ]
        )

    return [last.set(_HIGH), last_place.set(tir.f32(-1.0)), tir.loop("i", tir.shape_of(values)[-1], find)]
