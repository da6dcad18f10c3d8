"""The shapes of loop that every emitted kernel is made of.

A vector loop needs no tail: its last step starts at ``extent - width`` and computes a few elements twice,
which costs less than any scalar or masked tail and is right for every map and for maxima and minima.  A sum
drops the lanes that were counted before.  So no size is special, on any instruction set.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.target import Cpu

#: Elements times cost below which waking a second thread costs more than it saves (it takes microseconds).
PARALLEL_WORK = 1 << 16


def power_below(value: int) -> int:
    """The largest power of two that is not above ``value``."""
    return 1 << (value.bit_length() - 1)


def lanes_for(cpu: Cpu, dtypes, extent: int) -> int:
    """Vector lanes for values of these types: a register of the widest, no more than ``extent``."""
    widest = max((int(tirx.const(0, d).ty.dtype.bits) for d in dtypes), default=32)
    return max(1, min(cpu.lanes * 32 // max(widest, 8), power_below(extent)))


def stack(name: str, size: int, dtype: str) -> tir.Buffer:
    """Scratch of the calling thread.  Unlike one of scope "local", TVM leaves it on the stack."""
    return tirx.decl_buffer([tir.i64(size)], dtype, name=name)


@dataclass(frozen=True)
class Steps:
    """``extent`` elements in steps of ``width``; the last step may overlap the one before."""

    extent: int
    width: int

    @property
    def count(self) -> int:
        return -(-self.extent // self.width)

    @property
    def overlap(self) -> int:
        """Elements of the last step that the step before has done already."""
        return self.count * self.width - self.extent

    @property
    def whole(self) -> int:
        """Steps that overlap no other."""
        return self.count - (self.overlap > 0)

    def start(self, step: tir.Expr) -> tir.Expr:
        first = step * tirx.const(self.width, step.ty)
        if not self.overlap:
            return first
        return tirx.min(first, tirx.const(self.extent - self.width, step.ty))


def steps_for(extent: int, lanes: int, unroll: int) -> tuple[Steps, int]:
    """The steps for ``extent`` elements with up to ``unroll`` vectors each, and the vectors per step.

    Takes the widest step that does not compute more than an eighth of the elements twice.
    """
    while unroll > 1:
        steps = Steps(extent, lanes * unroll)
        if steps.width <= extent and steps.overlap * 8 <= extent:
            return steps, unroll
        unroll //= 2
    return Steps(extent, lanes), 1


def nest_loops(dims, body: Callable[[list], tir.Stmt], kind: str = "SERIAL") -> tir.Stmt:
    """Loops over ``dims`` (``(variable, extent)``), outermost first, around ``body(indices)``."""

    def inner(rest, indices):
        if not rest:
            return body(indices)
        (variable, extent), *rest = rest
        return tir.loop(variable.name, extent, lambda i: inner(rest, [*indices, i]), kind)

    return inner(list(dims), [])


def spread(extents: tuple[int, ...], work: int, body: Callable[[list], tir.Stmt]) -> tir.Stmt:
    """Loops over ``extents``; one parallel loop over all of them when ``work`` is worth it."""
    total = 1
    for extent in extents:
        total *= extent
    if work >= PARALLEL_WORK and total > 1:
        return tir.loop("p", total, lambda p: body(tir.unflatten(p, extents)), "PARALLEL")

    def inner(rest, indices):
        if not rest:
            return body(indices)
        return tir.loop(
            f"i{len(indices)}", rest[0], lambda i: inner(rest[1:], [*indices, i]), independent=True
        )

    return inner(extents, [])
