"""The GEMM kernel: register tiles over rows and panels, epilogue on the way out."""

from sparsec.schedules import tir
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_plan import TilePlan
from sparsec.schedules.contraction_reduce import Reduction
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
    """``Y[*lead, out]`` from ``X[*lead, depth]``; ``tap`` stands between panel and slot in the packed arrays."""
    rows = 1
    for d in lead:
        rows *= d

    def tiles(panel, group: int, columns: int) -> tir.Stmt:
        most = plan.most_rows(group)
        return tile_loops(rows, most, lambda row, height: one(panel, group, columns, row, height))

    def one(panel, group: int, columns: int, row, height: int) -> tir.Stmt:
        tile = Tile(min(cpu.lanes, PANEL), height, group * PANEL)

        def at(r, channel):
            return [*tir.unflatten(row + r, lead), channel]

        def index(r, column):
            return [*tir.unflatten(row + r, lead), panel * PANEL + column]

        reduction = reduce.over_channels(tile, panel, tap, at)
        return tir.seq([*tile.allocate(), *tile.zero(), *reduction, *tile.finish(epilogue, index, columns)])

    return tir.seq(
        tir.loop(
            "group",
            repeats,
            lambda g, f=first, p=group, c=columns: tiles(f + g * p, p, c),
            "PARALLEL" if repeats > 1 else "SERIAL",
        )
        for first, repeats, group, columns in plan.parts(panels(out), out)
    )
