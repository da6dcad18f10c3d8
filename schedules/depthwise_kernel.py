"""The depthwise kernel: a row of output pixels by one vector of channels, kernel columns unrolled."""

import functools
import math

from tvm import tirx

from sparsec.schedules import quads, tir
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_pixels import PixelRun, clipped_rows, pixel_runs
from sparsec.schedules.contraction_start import begin, start_of
from sparsec.schedules.contraction_tile import Tile, pieces
from sparsec.schedules.depthwise import Depthwise
from sparsec.schedules.elements import INT8
from sparsec.schedules.target import Cpu

#: Multiply-adds in the unrolled body of one kernel row: more only costs compile time.
UNROLLED = 64


def depthwise_body(cpu: Cpu, spec: Depthwise, x: tir.Buffer, w: tir.Buffer, epilogue: Epilogue) -> tir.Stmt:
    multiplier = spec.out_c // spec.in_c
    bytes_joined = spec.kind is INT8 and multiplier == 1
    wide = quads.columns_lanes(cpu, spec.out_c) if bytes_joined else cpu.lanes
    # Half the registers accumulate; the rest holds a kernel row and the pixels that slide past it.
    runs = pixel_runs(spec, max(2, min(cpu.registers * cpu.lanes // wide // 2, UNROLLED // spec.k_w)))
    words = spec.k_h, spec.kind.words(spec.k_w)
    product = functools.partial(spec.kind.multiply_add, cpu, each=True)

    def one(b, i, run: PixelRun, pixel, channel, lanes: int) -> tir.Stmt:
        tile = Tile(lanes, run.width, lanes, spec.kind.sums)

        def activations(p, q, r):
            """The vector of words ``q`` of kernel row ``p``, for pixel ``r`` of the tile."""
            columns = range(q * spec.kind.group, min((q + 1) * spec.kind.group, spec.k_w))
            return spec.kind.joined_in(cpu, [activation(p, column, r) for column in columns])

        def activation(p, q, r):
            at = [
                b,
                i * spec.strides[0] + p * spec.dilations[0] - spec.pads[0],
                (pixel + r) * spec.strides[1] + q * spec.dilations[1] - spec.pads[1],
            ]
            if multiplier == 1:
                return tir.vector_load(x, *at, channel, lanes=lanes)
            shared = [tir.load(x, *at, tirx.floordiv(channel + v, tir.i64(multiplier))) for v in range(lanes)]
            return tirx.Shuffle(shared, [tir.i32(v) for v in range(lanes)]) if lanes > 1 else shared[0]

        def row_taps(p):
            return tir.seq(
                tile.multiply_add(
                    lambda r, v, q=q: activations(p, q, r),
                    lambda v, q=q: tir.vector_load(w, p, tir.i64(q), channel, lanes=lanes),
                    span=lanes,
                    chosen=chosen,
                    product=product,
                )
                # A word of several columns lies inside: what reaches into the padding was copied.
                for q, chosen in enumerate(run.valid[: spec.kind.words(spec.k_w)])
                if chosen
            )

        def index(r, column):
            return [b, i, pixel + r, channel + column]

        def weight(k):
            return lambda v: tir.vector_load(w, *tir.unflatten(k, words), channel, lanes=lanes)

        taps = clipped_rows(spec, i, row_taps) if any(run.valid) else tir.nothing()
        start, before = None, []
        if lanes == wide > cpu.lanes and quads.signed(cpu):
            start, before = start_of(cpu, lanes, lanes, math.prod(words), weight, each=True)
        sums = [*before, *tile.allocate(), *begin(tile, start)]
        return tir.seq([*sums, taps, *tile.finish(epilogue, index, lanes)])

    def channels(b, i, run, pixel) -> tir.Stmt:
        lanes = wide
        if spec.out_c < lanes:
            parts = pieces(spec.out_c, lanes)
            return tir.seq(one(b, i, run, pixel, tir.i64(start), width) for start, width in parts)
        # The last vector ends with the last channel and may repeat a few channels of the one before.
        count = -(-spec.out_c // lanes)
        return tir.loop(
            "c",
            count,
            lambda c: one(b, i, run, pixel, tirx.min(c * lanes, tir.i64(spec.out_c - lanes)), lanes),
        )

    def row(t):
        b, i = tir.unflatten(t, (spec.batch, spec.out_h))
        return tir.seq(
            tir.loop("tile", run.count, lambda t, run=run: channels(b, i, run, run.start + t * run.width))
            for run in runs
        )

    rows = spec.batch * spec.out_h
    return tir.loop("row", rows, row, "PARALLEL" if rows > 1 else "SERIAL")
