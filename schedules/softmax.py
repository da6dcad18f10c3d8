"""Softmax and LogSoftmax along any axis.

    softmax(x)_i     = exp(x_i - m) / sum_j exp(x_j - m),   m = max_j x_j
    log_softmax(x)_i = (x_i - m) - log(sum_j exp(x_j - m))

A row that holds NaN or +inf, or nothing but -inf, is NaN throughout, as in ONNX Runtime.
"""

from tvm import te, tirx

from sparsec.schedules import math, rows, tir, vector
from sparsec.schedules.target import Cpu

_COST = 12


def softmax(shape: tuple[int, ...], axis: int = -1) -> tirx.PrimFunc:
    """The unscheduled definition ``(X, Y)``, both float32 of ``shape``."""
    return _definition("softmax", shape, axis)


def log_softmax(shape: tuple[int, ...], axis: int = -1) -> tirx.PrimFunc:
    """The unscheduled definition ``(X, Y)``, both float32 of ``shape``."""
    return _definition("log_softmax", shape, axis)


def _definition(name: str, shape: tuple[int, ...], axis: int) -> tirx.PrimFunc:
    axis = rows.normal_axis(name, axis, len(shape))
    x = te.placeholder(shape, "float32", "X")
    return rows.definition(name, [x, stages(name, x, shape, axis)], {"sparsec.axis": axis})


def stages(name: str, x: te.Tensor, shape: tuple[int, ...], axis: int) -> te.Tensor:
    """``"softmax"`` or ``"log_softmax"`` of ``x`` along ``axis``, counted from the front."""
    without = shape[:axis] + shape[axis + 1 :]

    def put(i, k):
        return (*i[:axis], k, *i[axis:])

    def drop(i):
        return (*i[:axis], *i[axis + 1 :])

    k = te.reduce_axis((0, shape[axis]), "k")
    top = te.compute(without, lambda *i: te.max(x[put(i, k)], axis=[k]), "top")
    j = te.reduce_axis((0, shape[axis]), "j")
    total = te.compute(without, lambda *i: te.sum(te.exp(x[put(i, j)] - top[i]), axis=[j]), "total")
    if name == "softmax":
        return te.compute(shape, lambda *i: te.exp(x[i] - top[drop(i)]) / total[drop(i)], "Y")
    return te.compute(shape, lambda *i: x[i] - top[drop(i)] - te.log(total[drop(i)]), "Y")


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """Three passes over a row in cache: maximum; exponentials and their sum; scaling."""
    if not rows.is_op(func, "softmax", "log_softmax"):
        return None
    log = rows.is_op(func, "log_softmax")
    x, y = func.params
    axis = int(func.attrs["sparsec.axis"])

    def body(row: rows.Row):
        top, total = row.state("top"), row.state("total")
        # The output row holds the exponentials until they are scaled, but where it does not stay in cache.
        kept = vector.stack("kept", row.rows * row.extent, "float32") if row.streamed else y

        def shifted(place, l):
            return tir.load(x, *place.index(l)) - row.get(top, l, place.row)

        def exponential(place, l):
            return math.exp_not_positive(shifted(place, l))

        def find_top(place):
            yield row.fold_in(top, place, lambda l: tir.load(x, *place.index(l)), rows.maximum)

        def at(place, l):
            if not row.streamed:
                return place.index(l)
            return [place.index(l)[axis] + tir.i64(place.row * row.extent)]

        def exponentials(place):
            yield from row.ahead(x, place)
            yield row.vector(lambda l: tirx.BufferStore(kept, exponential(place, l), at(place, l)))
            yield row.fold_in(
                total,
                place,
                lambda l: place.only_fresh(l, tir.load(kept, *at(place, l)), tir.f32(0.0)),
                rows.add,
            )

        def sum_only(place):
            yield row.fold_in(
                total,
                place,
                lambda l: place.only_fresh(l, exponential(place, l), tir.f32(0.0)),
                rows.add,
            )

        def scale(place):
            def lane(l):
                old = tir.load(kept, *at(place, l))
                return tirx.BufferStore(
                    y, place.only_fresh(l, old * row.get(total, l, place.row), old), place.index(l)
                )

            yield row.put(lane)

        def subtract(place):
            yield row.put(
                lambda l: tirx.BufferStore(
                    y, shifted(place, l) - row.get(total, l, place.row), place.index(l)
                )
            )

        return [
            *tir.alloc([top, total, kept] if row.streamed else [top, total]),
            row.fill(top, float("-inf")),
            row.fill(total, 0.0),
            row.sweep(find_top),
            *row.fold(top, rows.maximum),
            row.sweep(sum_only if log else exponentials),
            *row.fold(total, rows.add),
            *row.set(
                total,
                lambda l, r: tirx.log(row.get(total, l, r)) if log else tir.f32(1.0) / row.get(total, l, r),
            ),
            row.sweep(subtract if log else scale),
        ]

    return rows.kernel(func, axis, 1, _COST, cpu, body)
