"""Concatenation: each input is copied to its place, in runs as long as both sides are contiguous.

Y[..., start_i + k, ...] = X_i[..., k, ...]
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from tvm import tirx

from sparsec.schedules import tir, vector
from sparsec.schedules.attention import Strided

#: Bytes that one vector moves: a register of the widest level, which others split.
_VECTOR = 64


def concat(sources: Sequence[Strided], shapes: Sequence[tuple[int, ...]], axis: int) -> tirx.PrimFunc:
    """The function ``(*X, Y)``, all flat and of one type, scheduled already.

    Input ``i`` has ``shapes[i]`` and lies in a buffer of ``sources[i].size`` elements as that says; Y is
    their concatenation along ``axis``, row-major.
    """
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    steps = [prod(whole[i + 1 :]) for i in range(len(whole))]
    dtype = sources[0].dtype
    inputs = [tirx.decl_buffer([tir.i64(s.size)], dtype, name=f"x{i}") for i, s in enumerate(sources)]
    y = tirx.decl_buffer([tir.i64(prod(whole))], dtype, name="y")
    stmts, start = [], 0
    for x, source, shape in zip(inputs, sources, shapes, strict=True):
        if 0 not in shape:
            stmts.append(_copy(x, source, y, start * steps[axis], shape, steps))
        start += shape[axis]
    func = tirx.PrimFunc([*inputs, y], tir.seq(stmts) if stmts else tir.nothing())
    return func.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True, tir.OP_PATTERN: tir.OPAQUE})


def _copy(x: tir.Buffer, source: Strided, y: tir.Buffer, start: int, shape, steps) -> tir.Stmt:
    *outer, (extent, stride, step) = runs(shape, source.strides, steps)
    lanes = max(1, _VECTOR // np.dtype(source.dtype).itemsize) if stride == step == 1 else 1
    parts = vector.Steps(extent, min(lanes, vector.power_below(extent)))

    def row(indices):
        origin, target = tir.i64(source.offset), tir.i64(start)
        for index, (_, s, t) in zip(indices, outer, strict=True):
            origin, target = origin + index * tir.i64(s), target + index * tir.i64(t)

        def part(i):
            first = parts.start(i)

            def lane(v):
                value = tir.load(x, origin + (first + v) * tir.i64(stride))
                return tirx.BufferStore(y, value, [target + (first + v) * tir.i64(step)])

            return tir.vector_loop(parts.width, lane)

        return tir.loop("part", parts.count, part, independent=True)

    return vector.spread(tuple(n for n, _, _ in outer), prod(shape), row)


def runs(shape, strides, steps) -> list[tuple[int, int, int]]:
    """(extent, stride, step) of the loops of a copy, neighbours fused where both sides run through them."""
    loops = [axis for axis in zip(shape, strides, steps, strict=True) if axis[0] > 1] or [(1, 1, 1)]
    fused = [loops[-1]]
    for extent, stride, step in reversed(loops[:-1]):
        count, low, small = fused[-1]
        if (stride, step) == (low * count, small * count):
            fused[-1] = (extent * count, low, small)
        else:
            fused.append((extent, stride, step))
    return fused[::-1]
