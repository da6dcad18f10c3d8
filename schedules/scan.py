"""Running sums along an axis (ONNX operator CumSum)."""

from math import prod

from tvm import tirx

from sparsec.schedules import rows, tir, vector

#: Neighbouring sums kept at once; the vector units of every level take this in a few registers.
_LANES = 16


def cumsum(
    shape: tuple[int, ...], dtype: str, axis: int, exclusive: bool = False, reverse: bool = False
) -> tirx.PrimFunc:
    """The function ``(X, Y)``, both ``dtype`` of ``shape``, ready to build.

    ``Y[k] = X[0] + ... + X[k]`` along ``axis``; ``exclusive`` leaves ``X[k]`` out,
    ``reverse`` sums from the end.
    """
    axis = rows.normal_axis("cumsum", axis, len(shape))
    lead, extent, tail = shape[:axis], shape[axis], shape[axis + 1 :]
    x, y = (tirx.decl_buffer([tir.i64(d) for d in shape], dtype, name=name) for name in "XY")
    inner = prod(tail)
    lanes = min(_LANES, vector.power_below(inner))
    steps = vector.Steps(inner, lanes)
    zero = tirx.const(0, dtype)

    def run(indices):
        o, which = indices
        acc = vector.stack("acc", lanes, dtype)
        base = steps.start(which)

        def add(k):
            k = tir.i64(extent - 1) - k if reverse else k

            def lane(l):
                at = [*tir.unflatten(o, lead), k, *tir.unflatten(base + l, tail)]
                total = tirx.BufferStore(acc, tir.load(acc, l) + tir.load(x, *at), [l])
                store = tirx.BufferStore(y, tir.load(acc, l), at)
                return tir.seq([store, total] if exclusive else [total, store])

            return tir.vector_loop(lanes, lane)

        clear = tir.vector_loop(lanes, lambda l: tirx.BufferStore(acc, zero, [l]))
        return tir.seq([*tir.alloc([acc]), clear, tir.loop("k", extent, add)])

    body = vector.spread((prod(lead), steps.count), prod(shape), run)
    return _ready([x, y], body)


def _ready(params: list, body: tir.Stmt) -> tirx.PrimFunc:
    attrs = {tir.NOALIAS: True, tir.SCHEDULED: True, tir.OP_PATTERN: tir.OPAQUE, "s_tir": True}
    return tirx.PrimFunc(params, body).with_attrs(attrs)
