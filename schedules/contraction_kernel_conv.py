"""The convolution kernel: a row of output pixels by a few panels, borders clipped instead of padded.

Rows of the kernel window that fall outside are left out by the bounds of the loop over them.  Columns are
known when the code is made: a tile at the left or right border adds each kernel column to the pixels that
have it.
"""

import functools
import math

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_conv import Conv
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_pixels import PixelRun, clipped_rows, pixel_runs
from sparsec.schedules.contraction_plan import TilePlan, row_blocks
from sparsec.schedules.contraction_reduce import Reduction
from sparsec.schedules.contraction_start import begin
from sparsec.schedules.contraction_tile import Tile
from sparsec.schedules.layout import PANEL
from sparsec.schedules.target import Cpu


def conv_body(cpu: Cpu, spec: Conv, reduce: Reduction, epilogue: Epilogue, plan: TilePlan) -> tir.Stmt:
    own, rows = spec.out_c // spec.groups, spec.batch * spec.out_h

    def rows_of(part, group_index, g):
        first, _, panels, columns = part
        inside = first + g * panels
        panel = group_index * spec.group_panels + inside
        channel = group_index * own + inside * PANEL
        prepared, before = reduce.prepared(
            rows * spec.out_w, min(cpu.lanes, plan.width(columns)), panel, panels
        )

        def row(b, i):
            return tir.seq(
                tir.loop(
                    "tile",
                    run.count,
                    lambda t, run=run: one(
                        prepared, panel, columns, channel, group_index, b, i, run, run.start + t * run.width
                    ),
                )
                for run in pixel_runs(spec, plan.most_rows(columns))
            )

        return before, row

    def one(reduce, panel, columns, channel, group_index, b, i, run: PixelRun, pixel) -> tir.Stmt:
        width = plan.width(columns)
        tile = Tile(min(cpu.lanes, width), run.width, width, spec.kind.sums)

        def index(r, column):
            return [b, i, pixel + r, channel + column]

        def input_at(tap, r, c):
            p, q = tap
            iw = (pixel + r) * spec.strides[1] + q * spec.dilations[1] - spec.pads[1]
            return [b, input_row(p), iw, tir.offset(c, group_index * spec.depth)]

        def column_taps(p, q, chosen):
            return reduce.over_channels(tile, panel, [p, q], functools.partial(input_at, (p, q)), chosen)

        def input_row(p):
            return i * spec.strides[0] + p * spec.dilations[0] - spec.pads[0]

        def row_taps(p):
            if run.interior:
                return tir.loop("q", spec.k_w, lambda q: tir.seq(column_taps(p, q, None)))
            return tir.seq(
                stmt
                for q, chosen in enumerate(run.valid)
                if chosen
                for stmt in column_taps(p, tir.i64(q), chosen)
            )

        if not any(spec.pads):
            taps = tir.seq(reduce.over_window(tile, panel, (spec.k_h, spec.k_w), input_at))
        else:
            taps = clipped_rows(spec, i, row_taps) if any(run.valid) else tir.nothing()
        return tir.seq(
            [
                *tile.allocate(),
                *begin(tile, reduce.start),
                *tile.prefetch(cpu, epilogue, index, columns),
                taps,
                *tile.finish(epilogue, index, columns),
            ]
        )

    def part_body(part) -> tir.Stmt:
        repeats = part[1]
        tasks = spec.groups * repeats
        weights = spec.kind.words(spec.out_c * spec.k_h * spec.k_w * spec.depth)
        blocks = row_blocks(cpu, spec.kind.words(math.prod(spec.x_shape)), weights, tasks, rows)

        def task(t):
            block, rest = tirx.floordiv(t, tir.i64(tasks)), tirx.floormod(t, tir.i64(tasks))
            group_index, g = tir.unflatten(rest, (spec.groups, repeats))
            before, make = rows_of(part, group_index, g)
            low, high = (tirx.floordiv((block + end) * rows, tir.i64(blocks)) for end in (0, 1))
            count, start = (high - low, low) if blocks > 1 else (rows, 0)
            each = lambda r: make(*tir.unflatten(r, (spec.batch, spec.out_h)))  # noqa: E731
            return tir.seq([*before, tir.loop("r", count, each, start=start)])

        return tir.loop("task", blocks * tasks, task, "PARALLEL" if blocks * tasks > 1 else "SERIAL")

    return tir.seq(part_body(part) for part in plan.parts(spec.group_panels, own))
