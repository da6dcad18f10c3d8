"""One row in the hands of a warp, of a block where it is long, or of some lanes where it is a tile's.

A thread has every 32nd (or 256th, or 1024th) vector of the row, in registers unless the row is very long.
What is folded is exchanged by shuffles, and between warps through shared memory, so that all threads of a
row get the same number, bit for bit: loops that end by it end together.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.target import THREADS, WARP

#: Elements of a row that a thread keeps in registers, which leaves as many for the rest.
_KEPT = 32
#: The longest row of a warp; the threads of a block for longer ones: the first that can keep the row.
_WARP_ROW = WARP * _KEPT
_BLOCKS = (256, 1024)
#: Threads for a row that none can keep: with 1024 there would be too few registers for loads ahead.
_REREADING = 512
#: Numbers that a row may have.
_NUMBERS = 5


class Number:
    """A float32 that every thread of the row has."""

    def __init__(self, name: str):
        self.buffer = ptx.registers(name, 1, "float32")

    @property
    def value(self) -> tir.Expr:
        return tir.load(self.buffer, tir.i64(0))

    def set(self, value: tir.Expr) -> tir.Stmt:
        return tirx.BufferStore(self.buffer, value, [tir.i64(0)])


class Row(ABC):
    """A row of ``extent`` elements: ``threads`` work on it and have ``count`` each, ``width`` at a time.

    They are in registers where ``kept``; else ``element`` reads them again for every fold.  A kind of row
    says what ``element`` is, and what ``write`` does.  The methods give statements.
    """

    def __init__(self, extent: int, threads: int, width: int, kept: bool):
        self.extent, self.threads, self.width, self.kept = extent, threads, width, kept
        self.count = -(-extent // (threads * width)) * width
        self.values = ptx.registers("values", self.count if kept else width, "float32")
        self.exchanged = tirx.decl_buffer([tir.i64(_NUMBERS * WARP)], "float32", "exchanged", scope="shared")
        self.numbers: list[Number] = []

    @abstractmethod
    def element(self, at) -> tir.Expr:
        """Element ``at`` of the row, from where it lies."""

    @abstractmethod
    def write(self, value: Callable) -> tir.Stmt:
        """Stores ``value(x, at)`` of all elements."""

    @property
    def buffers(self) -> list[tir.Buffer]:
        """What is to be allocated around the statements, once they have been made."""
        return [
            self.values,
            *(number.buffer for number in self.numbers),
            *([self.exchanged] if self.threads > WARP else []),
        ]

    def number(self, name: str) -> Number:
        self.numbers.append(Number(name))
        return self.numbers[-1]

    def fold(self, number: Number, neutral: float, join: Callable, element: Callable) -> list[tir.Stmt]:
        """Sets ``number`` to ``element(x)`` of all elements of the row, joined."""
        return self.fold_places(number, neutral, join, lambda x, _: element(x))

    def fold_places(
        self, number: Number, neutral: float, join: Callable, element: Callable
    ) -> list[tir.Stmt]:
        """As ``fold``, of ``element(x, at)``."""
        return self.fold_together({number: element}, neutral, join)

    def fold_together(
        self, elements: dict[Number, Callable], neutral: float, join: Callable
    ) -> list[tir.Stmt]:
        """``fold_places`` of several numbers in one pass, so that what their elements share is found once."""

        def add(x, at):
            return tir.seq(n.set(join(n.value, element(x, at))) for n, element in elements.items())

        exchanges = [stmt for number in elements for stmt in self._exchange(number, join)]
        return [*(number.set(tir.f32(neutral)) for number in elements), self._each(add), *exchanges]

    def change(self, element: Callable) -> tir.Stmt | None:
        """Puts ``element(x)`` in the place of every element that is kept; None where none is."""
        if not self.kept:
            return None

        def store(i):
            return tirx.BufferStore(self.values, element(tir.load(self.values, i)), [i])

        return ptx.unrolled("i", self.count, store)

    def repeat(self, condition: Callable[[], tir.Expr], body: list[tir.Stmt]) -> list[tir.Stmt]:
        """``body`` as long as ``condition()``, which all threads of the row agree on.

        Rows that share a warp go on together, as shuffles are for all of its lanes: for rows that have ended,
        ``body`` must change nothing.
        """
        if self.threads >= WARP:
            return [tirx.While(condition(), tir.seq(body))]
        any_ = self.number("any")
        ask = [any_.set(tirx.Select(condition(), tir.f32(1.0), tir.f32(0.0)))]
        ask += self._butterfly(any_, tirx.Max, WARP)
        return [*ask, tirx.While(any_.value > tir.f32(0.0), tir.seq([*body, *ask]))]

    # ---- elements ---------------------------------------------------------------------------------------

    def _each(self, body: Callable, vector: bool = False) -> tir.Stmt:
        """``body(x, at)`` for the elements of this thread, one by one or as vectors."""

        def some(group):
            held = group if self.kept else tir.i64(0)

            def lane(v):
                return body(tir.load(self.values, held * self.width + v), self._place(group) + v)

            own = tir.vector_loop(self.width, lane) if vector else ptx.unrolled("v", self.width, lane)
            return ptx.when(
                self._exists(group), own if self.kept else tir.seq([self._read(group, held), own])
            )

        groups = self.count // self.width
        return ptx.unrolled("group", groups, some) if self.kept else tir.loop("group", groups, some)

    def read_all(self) -> tir.Stmt:
        def some(group):
            return ptx.when(self._exists(group), self._read(group, group))

        return ptx.unrolled("group", self.count // self.width, some)

    def _read(self, group, held) -> tir.Stmt:
        def lane(v):
            return tirx.BufferStore(
                self.values, self.element(self._place(group) + v), [held * self.width + v]
            )

        return tir.vector_loop(self.width, lane)

    def _place(self, group):
        return (group * self.threads + self.thread) * self.width

    def _exists(self, group):
        return None if self.count * self.threads == self.extent else self._place(group) < self.extent

    # ---- numbers ----------------------------------------------------------------------------------------

    def _exchange(self, number: Number, join: Callable) -> list[tir.Stmt]:
        """Joins what the threads of the row have, for all of them in the same order."""
        if self.threads <= WARP:
            return self._butterfly(number, join, self.threads)
        # Each number has its own place: another one's barrier is between two exchanges of the same.
        place = self.numbers.index(number) * WARP
        warps, lane = self.threads // WARP, self.thread % WARP
        keep = ptx.put_shared(self.exchanged, self.warp + place, number.value)
        return [
            *self._butterfly(number, join, WARP),
            tirx.IfThenElse(lane < 1, keep, None),
            ptx.barrier(),
            ptx.get_shared(number.buffer, self.exchanged, lane % warps + place),
            *self._butterfly(number, join, warps),
        ]

    def _butterfly(self, number: Number, join: Callable, lanes: int) -> list[tir.Stmt]:
        stmts = []
        while lanes > 1:
            lanes //= 2
            other = ptx.shuffle_xor(number.value, lanes)
            stmts.append(number.set(join(number.value, other)))
        return stmts


class MemoryRow(Row):
    """The row at hand of ``x`` and ``y``, which are cut into rows at ``axis``; used within ``kernel``."""

    def __init__(self, x: tir.Buffer, y: tir.Buffer, axis: int, threads: int, width: int):
        shape = tir.shape_of(x)
        self.x, self.y, self.lead, self.inner = x, y, shape[:axis], shape[axis:]
        extent = math.prod(self.inner)
        super().__init__(extent, threads, width, -(-extent // (threads * width)) * width <= _KEPT)

    @classmethod
    def of(cls, x: tir.Buffer, y: tir.Buffer, axis: int) -> "MemoryRow":
        """By as few threads as can keep it."""
        extent = math.prod(tir.shape_of(x)[axis:])
        fitting = [threads for threads in _BLOCKS if extent <= threads * _KEPT]
        threads = WARP if extent <= _WARP_ROW else (fitting or [_REREADING])[0]
        return cls(x, y, axis, threads, 4 if tir.shape_of(x)[-1] % 4 == 0 else 1)

    def kernel(self, steps: Callable[[], list[tir.Stmt]]) -> tir.Stmt:
        """``steps()`` for every row; warps that have one each come in blocks of several."""
        count, side = math.prod(self.lead), max(1, THREADS // self.threads if self.threads == WARP else 1)

        def block(index, thread):
            row = index * side + thread // self.threads
            self.thread, self.warp = thread % self.threads, thread // WARP
            self.at = tir.unflatten(row, self.lead)
            body = tir.seq([*([self.read_all()] if self.kept else []), *steps()])
            return tir.seq([*tir.alloc(self.buffers), ptx.when(row < count if count % side else None, body)])

        return ptx.grid((-(-count // side),), self.threads * side, block)

    def index(self, at) -> list:
        """The place in the row that ``at`` is, along all of its axes."""
        return tir.unflatten(at, self.inner)

    def element(self, at) -> tir.Expr:
        return tir.load(self.x, *self.at, *self.index(at))

    def write(self, value: Callable) -> tir.Stmt:
        def store(x, at):
            return tirx.BufferStore(self.y, value(x, at), [*self.at, *self.index(at)])

        return self._each(store, vector=True)
