"""The reduction of a pattern whose words are picked from windows of the input (``quads.Windows``).

Words are picked into memory, a vector of them at once, and multiplied from there like dense ones: a broadcast
from memory costs nothing beside the products, one that is a shuffle would.  A vector is picked while the one
before it is multiplied.  Where products take a word from a lane, vectors stay in registers.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_tile import Tile
from sparsec.schedules.layout import PANEL
from sparsec.schedules.quads import GROUP, Windows


@dataclass(frozen=True)
class Picking:
    """What a tile adds of all taps of ``shape``.

    ``tap(t)`` are the coordinates of tap ``t``, ``at(tap, r, c)`` those of a row's input in ``x``.
    ``step(tap, word, value)`` adds word ``word`` of the weights times ``value(r)``; ``of_lanes(tap, word,
    value, count)``, where there is such, so many from ``word`` on times the lanes of ``value(r)``.
    """

    windows: Windows
    tile: Tile
    x: tir.Buffer
    choices: tir.Buffer
    block: tir.Expr
    shape: tuple[int, ...]
    tap: Callable
    at: Callable
    step: Callable
    of_lanes: Callable | None = None

    def body(self, loads_of: Callable) -> list[tir.Stmt]:
        """Every word of every tap; ``loads_of(word)``: the loads of a vector of words from there on, or 0."""
        stmts, done = [], 0
        while loads := loads_of(done):
            span = self.windows.span(self.tile.lanes, loads)
            count = (self.windows.whole - done) // span
            if self.of_lanes:
                stmts.append(self.lanes(done, count, loads))
            else:
                stmts += _Vectors(self, done, count, loads).body()
            done += count * span
        if rest := self.windows.words - done:
            one = lambda t: tir.loop("k", rest, lambda k: self.single(self.tap(t), k), start=done)  # noqa: E731
            stmts.append(tir.loop("t", math.prod(self.shape), one))
        return stmts

    def lanes(self, first: int, count: int, loads: int) -> tir.Stmt:
        """``count`` vectors of words of each tap from word ``first`` on, in registers."""
        windows, lanes = self.windows, self.tile.lanes
        span = windows.span(lanes, loads)

        def vector(t, v):
            tap, word = self.tap(t), first + v * span
            choices = windows.choices_at(self.choices, [self.block, *tap, word], lanes, loads)
            name = tirx.Var("choices", choices.ty)

            def picked(r):
                return windows.picked(self.x, self.at(tap, r, windows.start(word)), name, lanes, loads)

            return tir.seq([tirx.Bind(name, choices), self.of_lanes(tap, word, picked, span)])

        taps = math.prod(self.shape)
        return tir.loop("t", taps, lambda t: tir.loop("v", count, lambda v: vector(t, v)))

    def single(self, tap: list, word) -> tir.Stmt:
        choice, start = tirx.Var("choice", "int32"), self.windows.start(word)

        def value(r):
            return self.windows.picked_singly(self.x, lambda c: self.at(tap, r, c), start, choice)

        bind = tirx.Bind(choice, tir.load(self.choices, self.block, *tap, word))
        return tir.seq([bind, self.step(tap, word, value)])


class _Vectors:
    """``count`` vectors of words of each tap, from word ``first`` on, each picked by ``loads`` shuffles."""

    def __init__(self, picking: Picking, first: int, count: int, loads: int):
        self.all, self.first, self.count, self.loads = picking, first, count, loads
        self.rows, self.lanes = picking.tile.rows, picking.tile.lanes
        self.picked = tir.scratch("picked", 2, self.rows, self.lanes, dtype="int32")

    def body(self) -> list[tir.Stmt]:
        neighbours, total = self.lanes // GROUP, self.count * math.prod(self.all.shape)
        share = -(-self.rows // neighbours)

        def beside(v) -> tir.Stmt:
            def window(w):
                rows = [tirx.min(w * share + i, tir.i64(self.rows - 1)) for i in range(share)]
                return tir.seq([self.pick(v + 1, rows), self.multiply(v, w)])

            return tir.loop("w", neighbours, window)

        stmts = [*tir.alloc([self.picked]), self.pick(tir.i64(0), map(tir.i64, range(self.rows)))]
        if total > 1:
            stmts.append(tir.loop("v", total - 1, beside))
        return [*stmts, tir.loop("w", neighbours, lambda w: self.multiply(tir.i64(total - 1), w))]

    def place(self, v) -> tuple[list, tir.Expr]:
        """The tap and the first word of vector ``v``."""
        span, count = self.all.windows.span(self.lanes, self.loads), tir.i64(self.count)
        return self.all.tap(tirx.floordiv(v, count)), self.first + tirx.floormod(v, count) * span

    def pick(self, v, rows) -> tir.Stmt:
        windows, (tap, word) = self.all.windows, self.place(v)
        choices = windows.choices_at(self.all.choices, [self.all.block, *tap, word], self.lanes, self.loads)
        name = tirx.Var("choices", choices.ty)
        stmts = [tirx.Bind(name, choices)]
        for r in rows:
            inputs = self.all.at(tap, r, windows.start(word))
            value = windows.picked(self.all.x, inputs, name, self.lanes, self.loads)
            to = tirx.floormod(v, tir.i64(2)), r, tir.i64(0)
            stmts.append(tir.vector_store(self.picked, value, *to, lanes=self.lanes))
        return tir.seq(stmts)

    def multiply(self, v, window) -> tir.Stmt:
        """The words of one window of each load."""
        windows, (tap, start) = self.all.windows, self.place(v)
        stmts = []
        for load, part in itertools.product(range(self.loads), range(windows.per_window)):
            word, lane = windows.place(self.lanes, 0, load, part)
            word += start + window * windows.per_window
            of = tirx.floormod(v, tir.i64(2)), lane + window * GROUP
            value = lambda r, of=of: tir.load(self.picked, of[0], tir.i64(r), of[1])  # noqa: E731
            stmts.append(self.all.step(tap, word, value))
        return tir.seq(stmts)


def block_of(panel, block: int) -> tir.Expr:
    """The row of positions that ``panel`` reads, where ``block`` channels share one."""
    return tirx.floordiv(panel, tir.i64(block // PANEL))
