"""A padded copy of the input, where padding is not nothing or costs more than copying bytes.

A window of int8 has a zero point in its padding, which adds to every sum that sees it; so rows and columns
outside cannot be left out.  In the copy no tile is special.
"""

from dataclasses import replace

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_spec import Image
from sparsec.schedules.target import Cpu
from sparsec.schedules.vector import Steps, power_below


def padded(cpu: Cpu, spec: Image, x: tir.Buffer) -> tuple[Image, tir.Buffer, list[tir.Stmt]]:
    """``spec`` without pads, the buffer that it then reads, and the statements that fill it from ``x``."""
    top, left, bottom, right = spec.pads
    inner = replace(
        spec, in_h=spec.in_h + top + bottom, in_w=spec.in_w + left + right, pads=(0, 0, 0, 0), zero=0
    )
    dtype, wide = tir.dtype_of(x), inner.in_w * spec.in_c
    copy = tir.scratch("padded", *inner.x_shape, dtype=dtype)
    border = tirx.const(spec.zero, dtype)

    def run(row: list, start: int, size: int, value) -> list[tir.Stmt]:
        """Puts ``value(offset, lanes)`` into ``size`` cells of a row of the copy, from ``start`` on."""
        if not size:
            return []
        steps = Steps(size, min(cpu.lanes * 4, power_below(size)))

        def step(s):
            at = steps.start(s)
            index = [*row, *tir.unflatten(start + at, (inner.in_w, spec.in_c))]
            return tir.vector_store(copy, value(at, steps.width), *index, lanes=steps.width)

        return [tir.loop("s", steps.count, step)]

    def fill(_, lanes):
        return tir.broadcast(border, lanes)

    def row(t):
        b, i = tir.unflatten(t, (spec.batch, inner.in_h))
        source = i - top

        def read(at, lanes):
            index = [b, source, *tir.unflatten(at, (spec.in_w, spec.in_c))]
            return tir.vector_load(x, *index, lanes=lanes)

        inside = tir.seq(
            [
                *run([b, i], 0, left * spec.in_c, fill),
                *run([b, i], left * spec.in_c, spec.in_w * spec.in_c, read),
                *run([b, i], (left + spec.in_w) * spec.in_c, right * spec.in_c, fill),
            ]
        )
        if not top and not bottom:
            return inside
        exists = tirx.all(source >= 0, source < spec.in_h)
        return tirx.IfThenElse(exists, inside, tir.seq(run([b, i], 0, wide, fill)))

    rows = spec.batch * inner.in_h
    return inner, copy, [*tir.alloc([copy]), tir.loop("row", rows, row)]
