"""Kernels that work on whole rows: every element of a row is read, something is folded, the row is written.

Any axis may be the row.  Where it is the last, a kernel takes one row at a time with lanes along it; where
it is not, it takes as many neighbouring rows as there are lanes, one in each.  A kernel is written once for
both: ``Row`` says where the elements are, and what it means to fold a row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from tvm import te, tirx

from sparsec.schedules import tir, vector
from sparsec.schedules.target import Cpu

#: Function attribute of a definition: which operator it is.
OP = "sparsec.op"

#: Vectors in flight along a row: enough to hide the latency of a maximum or a fused multiply-add.
_UNROLL = 4


def definition(name: str, args: list, attrs: dict | None = None) -> tirx.PrimFunc:
    """The unscheduled function of TE tensors ``args``, named so that its rule finds it, closed to FuseOps."""
    func = te.create_prim_func(args, index_dtype_override="int64")
    return func.with_attrs({OP: name, tir.OP_PATTERN: tir.OPAQUE, tir.NOALIAS: True, **(attrs or {})})


def is_op(func: tirx.PrimFunc, *names: str) -> bool:
    return func.attrs is not None and OP in func.attrs and str(func.attrs[OP]) in names


def normal_axis(who: str, axis: int, rank: int) -> int:
    """``axis`` counted from the front; raises ValueError for one that does not exist."""
    if not -rank <= axis < rank:
        raise ValueError(
            f"{who}: required an axis from {-rank} to {rank - 1}, found {axis}; correct the axis"
        )
    return axis % rank


@dataclass(frozen=True)
class Place:
    """One vector of a row: ``index(l)`` addresses lane ``l``, ``fresh(l)`` is False where an earlier step has
    been there already (None: it has been nowhere), ``slot`` is the accumulator to use."""

    index: Callable
    fresh: Callable | None
    slot: int

    def only_fresh(self, l, value, otherwise):
        return value if self.fresh is None else tirx.Select(self.fresh(l), value, otherwise)


@dataclass(frozen=True)
class Row:
    """One row (``along``), or one row in each lane."""

    coordinates: Callable
    extent: int
    lanes: int
    unroll: int
    along: bool

    @property
    def width(self) -> int:
        return self.lanes * self.unroll

    def vector(self, body: Callable, width: int = 0) -> tir.Stmt:
        return tir.vector_loop(width or self.lanes, body)

    def state(self, name: str) -> tir.Buffer:
        """Accumulators, on the stack: ``unroll`` vectors."""
        return vector.stack(name, self.width, "float32")

    def fill(self, buffer: tir.Buffer, value: float) -> tir.Stmt:
        return self.vector(lambda l: tirx.BufferStore(buffer, tir.f32(value), [l]), self.width)

    def sweep(self, step: Callable[[Place], Iterable[tir.Stmt]]) -> tir.Stmt:
        """``step`` for all elements of the row, a vector at a time."""
        if not self.along:
            return tir.loop(
                "k", self.extent, lambda k: tir.seq(step(Place(lambda l: self.coordinates(k, l), None, 0)))
            )
        rounds = self.extent // self.width
        stmts = []
        if rounds:

            def several(k):
                return tir.seq(
                    s for u in range(self.unroll) for s in step(self._place(k * tir.i64(self.width), u))
                )

            stmts.append(tir.loop("k", rounds, several))
        for slot, start in enumerate(range(rounds * self.width, self.extent, self.lanes)):
            seen = max(0, start + self.lanes - self.extent)
            place = self._place(tir.i64(start - seen - slot * self.lanes), slot, seen)
            stmts.extend(step(place))
        return tir.seq(stmts)

    def _place(self, base, slot: int, seen: int = 0) -> Place:
        start = base + tir.i64(slot * self.lanes)
        fresh = (lambda l: l >= tir.i64(seen)) if seen else None
        return Place(lambda l: self.coordinates(start + l, tir.i64(0)), fresh, slot)

    def fold_in(self, acc: tir.Buffer, place: Place, value: Callable, combine: Callable) -> tir.Stmt:
        """``acc[slot] = combine(acc[slot], value(l))``."""

        def lane(l):
            at = tir.i64(place.slot * self.lanes) + l
            return tirx.BufferStore(acc, combine(tir.load(acc, at), value(l)), [at])

        return self.vector(lane)

    def fold(self, acc: tir.Buffer, combine: Callable) -> list[tir.Stmt]:
        """Folds the accumulators of a row into the one that ``get`` reads."""
        return self._halve(acc, self.width, 1 if self.along else self.lanes, combine)

    def _halve(self, acc: tir.Buffer, width: int, until: int, combine: Callable) -> list[tir.Stmt]:
        stmts = []
        while width > until:
            width //= 2

            def lane(l, half=width):
                value = combine(tir.load(acc, l), tir.load(acc, l + tir.i64(half)))
                return tirx.BufferStore(acc, value, [l])

            stmts.append(self.vector(lane, width) if width > 1 else lane(tir.i64(0)))
        return stmts

    def fold_lanes(self, acc: tir.Buffer, combine: Callable) -> list[tir.Stmt]:
        """Folds what ``set`` wrote over all the rows at hand into lane 0."""
        return [] if self.along else self._halve(acc, self.lanes, 1, combine)

    def get(self, acc: tir.Buffer, l):
        """What ``fold`` made of the row of lane ``l``."""
        return tir.load(acc, tir.i64(0) if self.along else l)

    def set(self, acc: tir.Buffer, value: Callable) -> tir.Stmt:
        """``acc = value(l)`` once per row."""
        if self.along:
            return tirx.BufferStore(acc, value(tir.i64(0)), [tir.i64(0)])
        return self.vector(lambda l: tirx.BufferStore(acc, value(l), [l]))


def add(a, b):
    return a + b


def maximum(a, b):
    """Either; NaN only if ``b`` is NaN.  Good where a NaN shows itself later anyway."""
    return tirx.Select(a > b, a, b)


def kernel(func: tirx.PrimFunc, axis: int, count: int, cost: int, cpu: Cpu, body: Callable) -> tirx.PrimFunc:
    """``func`` with the statements ``body(row)`` for each row; a row is ``count`` axes from ``axis`` on.

    ``cost`` is about how many instructions an element takes.
    """
    shape = tir.shape_of(func.params[0])
    lead, mid, tail = shape[:axis], shape[axis : axis + count], shape[axis + count :]
    outer, extent, inner = prod(lead), prod(mid), prod(tail)
    along = inner == 1
    lanes = min(cpu.lanes, vector.power_below(extent if along else inner))
    unroll = min(_UNROLL, vector.power_below(max(1, extent // lanes))) if along else 1
    steps = vector.Steps(inner, 1 if along else lanes)

    def one(indices):
        o, which = indices
        base = steps.start(which)

        def coordinates(k, l):
            last = [tir.i64(0)] * len(tail) if along else tir.unflatten(base + l, tail)
            return [*tir.unflatten(o, lead), *tir.unflatten(k, mid), *last]

        return tir.seq(body(Row(coordinates, extent, lanes, unroll, along)))

    code = vector.spread((outer, steps.count), prod(shape) * cost, one)
    return tirx.PrimFunc(func.params, code, func.ret_type, func.attrs).with_attr(tir.NOALIAS, True)
