"""The GEMM kernel: register tiles over rows and panels, weights streamed, epilogue on the way out."""

import math
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_lanes import choices, chosen_activations
from sparsec.schedules.contraction_tile import Tile, even_split, tile_rows
from sparsec.schedules.layout import PANEL, panels
from sparsec.schedules.target import Cpu


@dataclass(frozen=True)
class GemmPlan:
    """How a GEMM is cut: ``panels`` by at most ``rows`` per tile."""

    panels: int
    rows: int


def gemm_plan(cpu: Cpu, spec) -> GemmPlan:
    group = 2 if cpu.lanes == 16 else 1
    if spec.pattern.form(spec.k) == "shared":
        group = math.gcd(group, spec.pattern.block // PANEL)
    return GemmPlan(group, tile_rows(cpu, group))


def gemm_body(cpu: Cpu, spec, x, weights: list, epilogue: Epilogue, plan: GemmPlan) -> tir.Stmt:
    lead, form, stored = spec.lead, spec.pattern.form(spec.k), spec.pattern.kept(spec.k)
    values, pattern = weights[0], spec.pattern
    count = panels(spec.n)

    def tiles(panel, group: int, columns: int) -> tir.Stmt:
        stmts = []
        for start, repeat, height in even_split(spec.rows, plan.rows):
            stmts.append(
                tir.loop(
                    "tile", repeat, lambda t, s=start, h=height: one(panel, group, columns, s + t * h, h)
                )
            )
        return tir.seq(stmts)

    def one(panel, group: int, columns: int, row, height: int) -> tir.Stmt:
        tile = Tile(cpu, height, group)

        def index(r, column):
            return [*tir.unflatten(row + r, lead), panel * PANEL + column]

        def w(slot):
            return lambda v: tir.vector_load(
                values, panel + v // PANEL, slot, tir.i64(v % PANEL), lanes=tile.lanes
            )

        def at(r, channel):
            return [*tir.unflatten(row + r, lead), channel]

        def dense(slot, channel):
            return tile.multiply_add(
                lambda r, v: tirx.BufferLoad(x, at(r, channel)), w(slot), span=group * PANEL
            )

        def shared(slot):
            block = tirx.floordiv(panel, tir.i64(spec.pattern.block // PANEL))
            return dense(slot, tir.load(weights[1], block, slot).astype("int64"))

        def gather(slot):
            def channel(v):
                index = panel + v // PANEL, slot, tir.i64(v % PANEL)
                return tir.vector_load(weights[1], *index, lanes=tile.lanes).astype(f"int64x{tile.lanes}")

            return tile.multiply_add(
                lambda r, v: tirx.BufferLoad(x, at(r, channel(v))), w(slot), span=tile.lanes
            )

        def lanes(slot):
            start = tirx.floordiv(slot, tir.i64(pattern.window_slots)) * pattern.window
            picked = [
                choices(pattern, weights[1], [panel + v // PANEL, slot], v % PANEL, tile.lanes)
                for v in tile.vectors()
            ]
            return tile.multiply_add(
                lambda r, v: chosen_activations(
                    pattern, x, at(r, start), picked[v // tile.lanes], tile.lanes
                ),
                w(slot),
                span=tile.lanes,
            )

        if form == "dense":
            reduction = [tir.loop("k", stored, lambda k: dense(k, k))]
        elif form == "lanes":
            slots = pattern.slots(spec.k)
            reduction = [tir.loop("k", slots, lanes)]
            if stored > slots:
                skip = spec.k - stored
                reduction.append(tir.loop("k", stored - slots, lambda k: dense(k, k + skip), start=slots))
        else:
            reduction = [tir.loop("k", stored, shared if form == "shared" else gather)]
        return tir.seq([*tile.allocate(), *tile.zero(), *reduction, *tile.finish(epilogue, index, columns)])

    groups = []
    full = spec.n // PANEL // plan.panels
    rest = count - full * plan.panels
    if full:
        groups.append(
            tir.loop(
                "group", full, lambda g: tiles(g * plan.panels, plan.panels, plan.panels * PANEL), "PARALLEL"
            )
        )
    if rest:
        at = full * plan.panels
        groups.append(tiles(tir.i64(at), rest, spec.n - at * PANEL))
    return tir.seq(groups)
