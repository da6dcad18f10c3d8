"""The reduction over input channels of one tap, for every packed form: what the register tile accumulates."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_lanes import choices, chosen_activations
from sparsec.schedules.contraction_tile import Tile
from sparsec.schedules.layout import PANEL, WINDOW, Pattern


@dataclass(frozen=True)
class Reduction:
    """What a contraction reads: activations ``x``, packed ``weights``, ``depth`` channels of ``pattern``."""

    x: tir.Buffer
    weights: list[tir.Buffer]
    pattern: Pattern
    depth: int

    def over_channels(self, tile: Tile, panel, tap: list, at: Callable, chosen=None) -> list[tir.Stmt]:
        """Adds one tap to the rows ``chosen`` of ``tile`` (default all).

        ``panel`` is the tile's first panel, ``tap`` the coordinates of the tap in the packed arrays,
        ``at(r, c)`` the coordinates in ``x`` of row ``r`` and input channel ``c``.
        """
        pattern, stored = self.pattern, self.pattern.kept(self.depth)

        def dense(slot, channel):
            return tile.multiply_add(
                lambda r, v: tirx.BufferLoad(self.x, at(r, channel)),
                self._weight(tile, panel, tap, slot),
                span=tile.columns,
                chosen=chosen,
            )

        match pattern.form(self.depth):
            case "dense":
                return [tir.loop("k", stored, lambda k: dense(k, k))]
            case "shared":
                block = tirx.floordiv(panel, tir.i64(pattern.block // PANEL))
                kept = lambda slot: tir.load(self.weights[1], block, *tap, slot).astype("int64")  # noqa: E731
                return [tir.loop("k", stored, lambda slot: dense(slot, kept(slot)))]
            case "gather":
                return [tir.loop("k", stored, lambda slot: self._gather(tile, panel, tap, at, chosen, slot))]
        slots = pattern.slots(self.depth)
        loops = [tir.loop("k", slots, lambda slot: self._lanes(tile, panel, tap, at, chosen, slot))]
        if stored > slots:
            rest, skip = stored - slots, self.depth - stored
            loops.append(tir.loop("k", rest, lambda k: dense(k, k + skip), start=slots))
        return loops

    def _weight(self, tile: Tile, panel, tap: list, slot) -> Callable:
        values = self.weights[0]
        return lambda v: tir.vector_load(
            values, panel + v // PANEL, *tap, slot, tir.i64(v % PANEL), lanes=tile.lanes
        )

    def _gather(self, tile: Tile, panel, tap: list, at: Callable, chosen, slot) -> tir.Stmt:
        def channel(v):
            index = panel + v // PANEL, *tap, slot, tir.i64(v % PANEL)
            return tir.vector_load(self.weights[1], *index, lanes=tile.lanes).astype(f"int64x{tile.lanes}")

        return tile.multiply_add(
            lambda r, v: tirx.BufferLoad(self.x, at(r, channel(v))),
            self._weight(tile, panel, tap, slot),
            span=tile.lanes,
            chosen=chosen,
        )

    def _lanes(self, tile: Tile, panel, tap: list, at: Callable, chosen, slot) -> tir.Stmt:
        pattern, words = self.pattern, self.weights[1]
        start = tirx.floordiv(slot, tir.i64(pattern.window_slots)) * WINDOW
        picked, binds = [], []
        for v in tile.vectors():
            choice = choices(words, [panel + v // PANEL, *tap, slot], v % PANEL, tile.lanes)
            picked.append(tirx.Var(f"choice{v}", choice.ty))
            binds.append(tirx.Bind(picked[-1], choice))
        product = tile.multiply_add(
            lambda r, v: chosen_activations(
                pattern, self.x, at(r, start), slot, picked[v // tile.lanes], tile.lanes
            ),
            self._weight(tile, panel, tap, slot),
            span=tile.lanes,
            chosen=chosen,
        )
        return tir.seq([*binds, product])
