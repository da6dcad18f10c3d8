"""The reduction over input channels of one tap, for every packed form: what the register tile accumulates.

Every step also fetches weights that are wanted next, so that a layer whose weights come from memory runs like
one whose weights are in the cache: hardware prefetchers stop at a page and start anew at a panel.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_lanes import choices, chosen_activations
from sparsec.schedules.contraction_tile import Tile
from sparsec.schedules.layout import PANEL, WINDOW, Pattern

#: How many slots ahead the weights of a single row are fetched: what memory delivers during its latency.
STREAM_AHEAD = 16


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

        def step(slot, make: Callable, *args) -> tir.Stmt:
            return tir.seq([*self._fetch(tile, panel, tap, slot), make(slot, *args)])

        def dense(slot, channel):
            return tile.multiply_add(
                lambda r, v: tirx.BufferLoad(self.x, at(r, channel)),
                self._weight(tile, panel, tap, slot),
                span=tile.columns,
                chosen=chosen,
            )

        def gathered(slot):
            return self._gather(tile, panel, tap, at, chosen, slot)

        def permuted(slot):
            return self._lanes(tile, panel, tap, at, chosen, slot)

        match pattern.form(self.depth):
            case "dense":
                return [tir.loop("k", stored, lambda k: step(k, dense, k))]
            case "shared":
                block = tirx.floordiv(panel, tir.i64(pattern.block // PANEL))
                kept = lambda slot: tir.load(self.weights[1], block, *tap, slot).astype("int64")  # noqa: E731
                return [tir.loop("k", stored, lambda slot: step(slot, dense, kept(slot)))]
            case "gather":
                return [tir.loop("k", stored, lambda slot: step(slot, gathered))]
        slots = pattern.slots(self.depth)
        loops = [tir.loop("k", slots, lambda slot: step(slot, permuted))]
        if stored > slots:
            rest, skip = stored - slots, self.depth - stored
            loops.append(tir.loop("k", rest, lambda k: step(k, dense, k + skip), start=slots))
        return loops

    def _fetch(self, tile: Tile, panel, tap: list, slot) -> list[tir.Stmt]:
        """Asks for one slot of the panels that the next tile takes, or of these ones further on.

        All rows pass before the next panels are due, and meanwhile memory is idle.  A single row leaves no
        such time.  Fetching beyond the end of an array is harmless.
        """
        count = -(-tile.columns // PANEL)
        hop, ahead = (0, STREAM_AHEAD) if tile.rows == 1 else (count, 0)
        per_panel = [w for w in self.weights if tir.shape_of(w)[0] == tir.shape_of(self.weights[0])[0]]
        return [
            tir.prefetch(
                w, panel + p + hop, *tap, slot + ahead, *[tir.i64(0)] * (len(w.shape) - len(tap) - 2)
            )
            for w in per_panel
            for p in range(count)
        ]

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
