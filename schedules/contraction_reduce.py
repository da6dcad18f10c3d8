"""The reduction over input channels of one tap, for every packed form: what the register tile accumulates.

Every step also fetches weights that are wanted next, so that a layer whose weights come from memory runs like
one whose weights are in the cache: hardware prefetchers stop at a page and start anew at a panel.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx

from sparsec.schedules import lane_words, quads, tir
from sparsec.schedules.contraction_lanes import choices, chosen_activations
from sparsec.schedules.contraction_start import start_of
from sparsec.schedules.contraction_tile import Tile
from sparsec.schedules.contraction_windows import Picking, block_of
from sparsec.schedules.elements import FLOAT32, Element, halves
from sparsec.schedules.layout import PANEL, WINDOW, Pattern
from sparsec.schedules.target import Cpu

#: How many slots ahead the weights of a single row are fetched: what memory delivers during its latency.
STREAM_AHEAD = 16
#: Rows up to which choices are taken apart beside the products: storing them costs more.
FEW_ROWS = 4


@dataclass(frozen=True)
class Reduction:
    """What a contraction reads: activations ``x``, packed ``weights``, ``depth`` channels of ``pattern``.

    A step takes a *word* of the ``element``: one channel, or neighbours along the reduction together.  ``x``
    has what the element says, or bfloat16 that ``contraction_widened`` has made float32.
    ``choices``: what lanes pick words by, ``[vectors, *taps, words, lanes]``, and ``start``: what sums begin
    with, if not with 0, ``[channels]``, where it is ``prepared``.
    """

    cpu: Cpu
    x: tir.Buffer
    weights: list[tir.Buffer]
    pattern: Pattern
    depth: int
    element: Element = FLOAT32
    choices: tir.Buffer | None = None
    start: tir.Buffer | None = None

    def prepared(self, rows: int, lanes: int, panel, panels: int) -> tuple["Reduction", list[tir.Stmt]]:
        """The reduction for tiles of ``panels`` panels from ``panel`` on, and what is to be done before it.

        That is to take the choices of words apart, once for all ``rows``; beside the products of a tile it
        would take a third of their time.  Or to add up the weights, where products of signed bytes leave out
        a multiple of them.
        """
        if self.element.sums == "int32" and quads.signed(self.cpu):
            words = tir.shape_of(self.weights[0])[1:-1]

            def weight(at) -> Callable:
                *tap, slot = tir.unflatten(at, words)
                return self._weight(lanes, panel, tap, slot)

            start, stmts = start_of(self.cpu, lanes, panels * PANEL, math.prod(words), weight)
            return replace(self, start=start), stmts
        if rows <= FEW_ROWS or self.element.group == 1 or self.pattern.form(self.depth) != "lanes":
            return self, []
        stored, picking = self.weights[1], self._picking(lanes)
        shape = tir.shape_of(stored)[1:-1]
        choices = tir.scratch("choices", panels * PANEL // lanes, *shape, lanes, dtype="int32")

        def one(at):
            *tap, word = tir.unflatten(at, shape)
            return tir.seq(
                tir.vector_store(
                    choices,
                    picking.choices(stored, [panel + v // PANEL, *tap, word], v % PANEL),
                    *(tir.i64(v // lanes), *tap, word, tir.i64(0)),
                    lanes=lanes,
                )
                for v in range(0, panels * PANEL, lanes)
            )

        return replace(self, choices=choices), [*tir.alloc([choices]), tir.loop("w", math.prod(shape), one)]

    def over_channels(self, tile: Tile, panel, tap: list, at: Callable, chosen=None) -> list[tir.Stmt]:
        """Adds one tap to the rows ``chosen`` of ``tile`` (default all).

        ``panel`` is the tile's first panel, ``tap`` the coordinates of the tap in the packed arrays,
        ``at(r, c)`` the coordinates in ``x`` of row ``r`` and input channel ``c``.
        """
        if tir.dtype_of(self.x) != self.element.activation:
            return self._by_halves(tile, panel, tap, at, chosen)
        pattern, stored, group = self.pattern, self.pattern.kept(self.depth), self.element.group
        together = self.element.together(self.cpu)

        def step(slot, make: Callable, *args) -> tir.Stmt:
            return tir.seq([*self._fetch(tile, panel, tap, slot), make(slot, *args)])

        def products(slot, channels, neighbours=False):
            return self._multiply_add(
                tile,
                lambda r, v: self.element.word(
                    self.cpu, self.x, [at(r, c) for c in channels], neighbours, stored == 1
                ),
                self._weight(tile.lanes, panel, tap, slot),
                tile.columns,
                chosen,
            )

        def assembled(slot, channel):
            if group == 1:
                return products(slot, [channel(slot)])
            names = [tirx.Var(f"c{part}", "int64") for part in range(group)]
            binds = [tirx.Bind(n, channel(slot * group + part)) for part, n in enumerate(names)]
            return tir.seq([*binds, products(slot, names)])

        def dense(first, channel):
            """The inputs from ``channel`` on, in the words from ``first`` on."""
            whole, rest = divmod(self.depth - channel, group)
            skip, loops, done = channel - first * group, [], 0
            if whole >= together > 1:
                done = whole // together * together

                def vector(k) -> tir.Stmt:
                    slot = first + k * together
                    load = lambda r: self.element.words_at(self.x, at(r, slot * group + skip))  # noqa: E731
                    return self._of_lanes(tile, panel, tap, slot, load, together, chosen)

                loops.append(tir.loop("k", done // together, vector))
            if whole > done:
                body = lambda k: step(k, products, [k * group + skip], True)  # noqa: E731
                loops.append(tir.loop("k", whole - done, body, start=first + done))
            if rest:
                last = range(self.depth - rest, self.depth - rest + group)
                last = [tir.i64(min(c, self.depth - 1)) for c in last]
                loops.append(step(tir.i64(first + whole), products, last))
            return loops

        def gathered(slot):
            return self._gather(tile, panel, tap, at, chosen, slot)

        def permuted(slot):
            make = self._lanes if group == 1 else self._lane_words
            return make(tile, panel, tap, at, chosen, slot)

        match pattern.form(self.depth):
            case "dense":
                return dense(0, 0)
            case "shared" if self.element.windows(pattern, self.depth):
                return self._windows(tile, panel, (), lambda _: tap, lambda _, r, c: at(r, c))
            case "shared":
                block = block_of(panel, pattern.block)
                kept = lambda slot: tir.load(self.weights[1], block, *tap, slot).astype("int64")  # noqa: E731
                return [tir.loop("k", self.element.words(stored), lambda slot: step(slot, assembled, kept))]
            case "gather":
                return [tir.loop("k", stored, lambda slot: step(slot, gathered))]
        words = pattern.slots(self.depth) // group
        loop = tir.loop("k", words, lambda slot: step(slot, permuted))
        return [loop, *dense(words, self.depth // WINDOW * WINDOW)]

    def over_window(self, tile: Tile, panel, shape: tuple[int, int], at: Callable) -> list[tir.Stmt]:
        """Adds every tap of a window of ``shape``, all inside ``x``; ``at(tap, r, c)`` has its tap, too."""
        if self.element.windows(self.pattern, self.depth):
            return self._windows(tile, panel, shape, lambda t: tir.unflatten(t, shape), at)

        def one(*tap):
            return tir.seq(self.over_channels(tile, panel, [*tap], functools.partial(at, tap)))

        return [tir.loop("p", shape[0], lambda p: tir.loop("q", shape[1], lambda q: one(p, q)))]

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

    def _weight(self, lanes: int, panel, tap: list, slot) -> Callable:
        values = self.weights[0]

        def weight(v):
            index = [panel + v // PANEL, *tap, slot, tir.i64(v % PANEL)]
            return self.element.weight_vector(tir.vector_load(values, *index, lanes=lanes))

        return weight

    def _multiply_add(self, tile: Tile, x: Callable, w: Callable, span: int, chosen) -> tir.Stmt:
        product = functools.partial(self.element.multiply_add, self.cpu)
        return tile.multiply_add(x, w, span, chosen, product)

    def _of_lanes(
        self, tile: Tile, panel, tap: list, slot, load: Callable, count: int, chosen=None
    ) -> tir.Stmt:
        """Adds ``count`` words from ``slot`` on, which ``load(r)`` brings in the lanes of a vector."""
        stmts, rows = [], {}
        for r in range(tile.rows) if chosen is None else chosen:
            value = load(r)
            rows[r] = tirx.Var(f"x{r}", value.ty)
            stmts.append(tirx.Bind(rows[r], value))
        for lane in range(count):
            product = functools.partial(self.element.multiply_lane, lane)
            weight = self._weight(tile.lanes, panel, tap, slot + lane)
            stmts += self._fetch(tile, panel, tap, slot + lane)
            stmts.append(tile.multiply_add(lambda r, _: rows[r], weight, tile.columns, chosen, product))
        return tir.seq(stmts)

    def _by_halves(self, tile: Tile, panel, tap: list, at: Callable, chosen) -> list[tir.Stmt]:
        """Adds one tap where activations are widened: the lower halves of all words, then the upper ones.

        Both halves of a word at once would take more registers than there are.
        """
        stored, shared = self.pattern.kept(self.depth), self.pattern.form(self.depth) == "shared"

        def loop(part: int) -> tir.Stmt:
            def body(word) -> tir.Stmt:
                channel, slot = tirx.Var("c", "int64"), word * self.element.group + part
                if shared:
                    block = block_of(panel, self.pattern.block)
                    slot = tir.load(self.weights[1], block, *tap, slot).astype("int64")
                weight = self._weight(tile.lanes, panel, tap, word)
                product = tile.multiply_add(
                    lambda r, _: tirx.BufferLoad(self.x, at(r, channel)),
                    lambda v: halves(weight(v))[part],
                    tile.columns,
                    chosen,
                )
                fetch = self._fetch(tile, panel, tap, word) if part == 0 else []
                return tir.seq([*fetch, tirx.Bind(channel, slot), product])

            return tir.loop("k", -(-(stored - part) // self.element.group), body)

        return [loop(part) for part in range(min(self.element.group, stored))]

    def _windows(
        self, tile: Tile, panel, shape: tuple[int, ...], tap: Callable, at: Callable
    ) -> list[tir.Stmt]:
        """Adds the taps ``tap(t)`` of ``shape``; ``at(tap, r, c)`` are coordinates in ``x``."""
        windows = self.element.windows(self.pattern, self.depth)

        def step(where: list, word, value: Callable) -> tir.Stmt:
            weight = self._weight(tile.lanes, panel, where, word)
            product = self._multiply_add(tile, lambda r, _: value(r), weight, tile.columns, None)
            return tir.seq([*self._fetch(tile, panel, where, word), product])

        def of_lanes(where: list, word, value: Callable, count: int) -> tir.Stmt:
            return self._of_lanes(tile, panel, where, word, value, count)

        block = block_of(panel, self.pattern.block)
        lanes = of_lanes if self.element.together(self.cpu) > 1 else None
        picking = Picking(windows, tile, self.x, self.weights[1], block, shape, tap, at, step, lanes)
        return picking.body(functools.partial(windows.loads, self.cpu, tile.lanes))

    def _gather(self, tile: Tile, panel, tap: list, at: Callable, chosen, slot) -> tir.Stmt:
        def channel(v):
            index = panel + v // PANEL, *tap, slot, tir.i64(v % PANEL)
            return tir.vector_load(self.weights[1], *index, lanes=tile.lanes).astype(f"int64x{tile.lanes}")

        return tile.multiply_add(
            lambda r, v: tirx.BufferLoad(self.x, at(r, channel(v))),
            self._weight(tile.lanes, panel, tap, slot),
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
            self._weight(tile.lanes, panel, tap, slot),
            span=tile.lanes,
            chosen=chosen,
        )
        return tir.seq([*binds, product])

    def _lane_words(self, tile: Tile, panel, tap: list, at: Callable, chosen, word) -> tir.Stmt:
        lanes, picking = tile.lanes, self._picking(tile.lanes)
        picked, binds = [], []
        for v in tile.vectors():
            if self.choices is None:
                choice = picking.choices(self.weights[1], [panel + v // PANEL, *tap, word], v % PANEL)
            else:
                index = tir.i64(v // lanes), *tap, word, tir.i64(0)
                choice = tir.vector_load(self.choices, *index, lanes=lanes)
            picked.append(tirx.Var(f"choice{v}", choice.ty))
            binds.append(tirx.Bind(picked[-1], choice))
        product = functools.partial(
            tile.multiply_add,
            lambda r, v: picking.words(self.x, functools.partial(at, r), word, picked[v // lanes]),
            self._weight(tile.lanes, panel, tap, word),
            lanes,
            chosen,
            functools.partial(self.element.multiply_add, self.cpu),
        )
        if self.element.parts(self.cpu) == 1:
            return tir.seq([*binds, product()])
        # One vector after the other takes its weights apart, which takes fewer registers.
        return tir.seq([*binds, *(product([v]) for v in tile.vectors())])

    def _picking(self, lanes: int) -> lane_words.Picking:
        return lane_words.Picking(self.cpu, self.element.group, lanes, self.pattern, self.depth)
