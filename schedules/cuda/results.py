"""The end of a kernel: sums that lie in shared memory are added up, and meet the epilogue."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.cuda import ptx


@dataclass(frozen=True)
class Staged:
    """``parts`` sums for each of ``rows`` x ``channels`` results, ``line`` words between rows."""

    words: tir.Buffer
    parts: int
    rows: int
    channels: int
    line: int

    def at(self, part, row, channel):
        return (part * self.rows + row) * self.line + channel

    def value(self, row, channel) -> tir.Expr:
        return functools.reduce(
            lambda a, b: a + b,
            (tir.load(self.words, self.at(part, row, channel)) for part in range(self.parts)),
        )


def write(
    staged: Staged, threads: int, thread, vector: int, valid: Callable, index: Callable, epilogue: Epilogue
):
    """The stores of all results, runs of ``vector`` channels dealt out to the threads.

    ``valid(row, channel)`` is the condition under which a run exists, or None; ``index`` its coordinates.
    """
    runs = staged.channels // vector

    def run(i):
        row, channel = i // runs, i % runs * vector

        def lane(v):
            value = staged.value(row, channel + v)
            return tir.seq(epilogue.stores(index(row, channel + v), value))

        return ptx.when(valid(row, channel), tir.vector_loop(vector, lane))

    return deal(staged.rows * runs, threads, thread, run)


def deal(count: int, threads: int, thread, piece: Callable[[tir.Expr], tir.Stmt]) -> tir.Stmt:
    """``piece(i)`` for all ``i`` below ``count``, dealt out to the threads, neighbours to neighbours."""

    def one(i):
        index = i * threads + thread
        return ptx.when(index < count if count % threads else None, piece(index))

    return ptx.unrolled("i", -(-count // threads), one)


def every(*conditions):
    """Their conjunction; None where there is none."""
    given = [c for c in conditions if c is not None]
    return functools.reduce(tirx.all, given) if given else None
