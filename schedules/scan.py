"""Running sums and the k largest of a row: kernels that walk along one axis, rows side by side."""

from math import prod

from tvm import tirx

from sparsec.schedules import tir


def cumulative_sum(
    shape: tuple[int, ...], dtype: str, axis: int, exclusive: bool, reverse: bool
) -> tirx.PrimFunc:
    """The function ``(X, Y)``, ``Y[i] = sum of X[j] for j <= i`` along ``axis`` (ONNX CumSum-14).

    ``exclusive`` leaves ``X[i]`` itself out, ``reverse`` sums from the end.
    """
    size, (x, y) = shape[axis], _buffers(("X", shape, dtype), ("Y", shape, dtype))

    def row(at):
        def step(i):
            here = tir.i64(size - 1) - i if reverse else i
            before = here + 1 if reverse else here - 1
            carried = tir.load(y, *at(before))
            term = tir.load(x, *at(before if exclusive else here))
            return tirx.BufferStore(y, carried + term, at(here))

        first = tir.i64(size - 1 if reverse else 0)
        start = tirx.const(0, dtype) if exclusive else tir.load(x, *at(first))
        return tir.seq([tirx.BufferStore(y, start, at(first)), *_loop("i", size - 1, step, start=1)])

    return _function([x, y], _rows(shape, axis, row))


def top_k(shape: tuple[int, ...], dtype: str, axis: int, k: int, largest: bool) -> tirx.PrimFunc:
    """The function ``(X, values, indices)``: the ``k`` largest (smallest) along ``axis``, best first.

    Of equal values the one with the lower index comes first (ONNX TopK-11).  Insertion into the ``k`` found so
    far: linear in the row where few elements enter, ``size * k`` at worst.  ``indices`` are int64.
    """
    size = shape[axis]
    found = (*shape[:axis], k, *shape[axis + 1 :])
    x, values, indices = _buffers(("X", shape, dtype), ("values", found, dtype), ("indices", found, "int64"))

    def row(at):
        def enter(i, count):
            """Put ``X[i]`` behind the last of the first ``count`` that is not worse."""
            place, value = tir.local("place", 1, dtype="int64"), tir.local("value", 1, dtype=dtype)
            here, zero = tir.load(place, tir.i64(0)), [tir.i64(0)]
            ahead = tir.load(values, *at(here - 1))
            worse = ahead < tir.load(value, *zero) if largest else tir.load(value, *zero) < ahead
            shift = tir.seq(
                [
                    tirx.BufferStore(values, ahead, at(here)),
                    tirx.BufferStore(indices, tir.load(indices, *at(here - 1)), at(here)),
                    tirx.BufferStore(place, here - 1, zero),
                ]
            )
            return tir.seq(
                [
                    *tir.alloc([place, value]),
                    tirx.BufferStore(place, count, zero),
                    tirx.BufferStore(value, tir.load(x, *at(i)), zero),
                    # the guard comes first, so nothing ahead of the row is read
                    tirx.While(tirx.if_then_else(here > 0, worse, tirx.const(False, "bool")), shift),
                    tirx.BufferStore(values, tir.load(value, *zero), at(here)),
                    tirx.BufferStore(indices, i, at(here)),
                ]
            )

        def later(i):
            last, value = tir.load(values, *at(tir.i64(k - 1))), tir.load(x, *at(i))
            return tirx.IfThenElse(last < value if largest else value < last, enter(i, tir.i64(k - 1)), None)

        first = _loop("i", k, lambda i: enter(i, i))
        return tir.seq([*first, *_loop("j", size - k, later, start=k)])

    return _function([x, values, indices], _rows(shape, axis, row))


def _buffers(*specs) -> list:
    return [tirx.decl_buffer([tir.i64(d) for d in shape], dtype, name=name) for name, shape, dtype in specs]


def _function(params: list, body: tir.Stmt) -> tirx.PrimFunc:
    attrs = {tir.NOALIAS: True, tir.SCHEDULED: True, tir.OP_PATTERN: tir.OPAQUE, "s_tir": True}
    return tirx.PrimFunc(params, body).with_attrs(attrs)


def _rows(shape: tuple[int, ...], axis: int, row) -> tir.Stmt:
    """``row(at)`` for every row along ``axis``, in parallel; ``at(i)`` are the coordinates of its element i."""
    outer = (*shape[:axis], *shape[axis + 1 :])

    def one(index):
        coords = tir.unflatten(index, outer)
        return row(lambda i: [*coords[:axis], i, *coords[axis:]])

    count = prod(outer)
    return tir.loop("row", count, one, kind="PARALLEL" if count > 1 else "SERIAL")


def _loop(name: str, extent: int, body, start: int = 0) -> list[tir.Stmt]:
    """A serial loop over ``[start, start + extent)``, or nothing."""
    return [tir.loop(name, extent, body, start=start)] if extent > 0 else []
