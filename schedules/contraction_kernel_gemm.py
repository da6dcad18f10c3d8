"""The GEMM kernel: register tiles over rows and panels, epilogue on the way out."""

import math

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_plan import TASK_ROWS, TilePlan, row_blocks
from sparsec.schedules.contraction_reduce import Reduction
from sparsec.schedules.contraction_start import begin
from sparsec.schedules.contraction_tile import Tile, tile_loops
from sparsec.schedules.layout import PANEL, panels
from sparsec.schedules.target import Cpu


def gemm_body(
    cpu: Cpu,
    lead: tuple[int, ...],
    out: int,
    tap: list,
    reduce: Reduction,
    epilogue: Epilogue,
    plan: TilePlan,
) -> tir.Stmt:
    """``Y[*lead, out]`` from ``X[*lead, depth]``; ``tap`` stands between panel and slot as packed."""
    rows = math.prod(lead)

    def tiles(panel, panels: int, columns: int, share: tuple) -> tir.Stmt:
        most = plan.most_rows(columns)
        own, before = reduce.prepared(rows, min(cpu.lanes, plan.width(columns)), panel, panels)
        loops = tile_loops(rows, most, lambda row, height: one(own, panel, columns, row, height), share)
        return tir.seq([*before, loops])

    def one(own: Reduction, panel, columns: int, row, height: int) -> tir.Stmt:
        width = plan.width(columns)
        tile = Tile(min(cpu.lanes, width), height, width, reduce.element.sums)

        def at(r, channel):
            return [*tir.unflatten(row + r, lead), channel]

        def index(r, column):
            return [*tir.unflatten(row + r, lead), panel * PANEL + column]

        reduction = own.over_channels(tile, panel, tap, at)
        return tir.seq(
            [
                *tile.allocate(),
                *begin(tile, own.start),
                *tile.prefetch(cpu, epilogue, index, columns),
                *reduction,
                *tile.finish(epilogue, index, columns),
            ]
        )

    def part(first, repeats, group, columns) -> tir.Stmt:
        depth = reduce.element.words(reduce.depth)
        blocks = row_blocks(cpu, rows * depth, depth * out, repeats, -(-rows // TASK_ROWS))

        def task(t):
            panel = first + tirx.floormod(t, tir.i64(repeats)) * group
            block = tirx.floordiv(t, tir.i64(repeats)) if blocks > 1 else 0
            return tiles(panel, group, columns, (block, blocks))

        return tir.loop("task", blocks * repeats, task, "PARALLEL" if blocks * repeats > 1 else "SERIAL")

    return tir.seq(part(*each) for each in plan.parts(panels(out), out))
