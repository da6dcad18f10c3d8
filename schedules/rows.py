"""Kernels that work on whole rows: every element of a row is read, something is folded, the row is written.

Any axis may be the row.  Where it is the last, a kernel takes one row at a time with lanes along it; where
it is not, it takes as many neighbouring rows as there are lanes, one in each.  A kernel is written once for
both: ``Row`` says where the elements are, and what it means to fold a row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from tvm import te, tirx

from sparsec.schedules import stream, tir, vector
from sparsec.schedules.target import Cpu

#: Function attribute of a definition: which operator it is.
OP = "sparsec.op"

#: Vectors in flight: enough to hide the latency of a maximum or a fused multiply-add.
_UNROLL = 4

#: Rows up to this long are taken several at a time: folding one takes as long as reading this many elements.
_SHORT = 512


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
    """One vector of row ``row``: ``index(l)`` addresses lane ``l``, ``fresh(l)`` is False where an earlier
    step has been there already (None: it has been nowhere), ``slot`` is the accumulator to use."""

    index: Callable
    fresh: Callable | None
    slot: int
    row: int = 0

    def only_fresh(self, l, value, otherwise):
        return value if self.fresh is None else tirx.Select(self.fresh(l), value, otherwise)


@dataclass(frozen=True)
class Row:
    """The rows at hand: ``rows`` of them with lanes along each (``along``), or one row in each lane.

    Several short rows at once hide the time that folding each of them takes.
    ``coordinates(r, k, l)`` addresses element ``k`` of row ``r`` in lane ``l``.  ``streamed``: the results go
    past the caches, so the output is no place to keep anything.  ``far``: the input is not in a near cache.
    """

    coordinates: Callable
    extent: int
    lanes: int
    unroll: int
    rows: int
    along: bool
    streamed: bool
    far: bool

    @property
    def width(self) -> int:
        """Elements of one row that a step takes."""
        return self.lanes * self.unroll

    @property
    def size(self) -> int:
        """Elements of a state."""
        return self.width * self.rows

    def vector(self, body: Callable, width: int = 0) -> tir.Stmt:
        return tir.vector_loop(width or self.lanes, body)

    def put(self, body: Callable) -> tir.Stmt:
        """The stores of one vector of results: ``body(l)`` for lane ``l``."""
        return stream.vector_loop(self.lanes, body) if self.streamed else self.vector(body)

    def ahead(self, buffer: tir.Buffer, place: Place) -> list[tir.Stmt]:
        """Asks for the elements of the next rows, in a pass that leaves the memory idle."""
        if not self.far:
            return []
        return [stream.prefetch(buffer, place.index(tir.i64(self.rows * self.extent)))]

    def state(self, name: str) -> tir.Buffer:
        """Accumulators, on the stack: ``unroll`` vectors for each row."""
        return vector.stack(name, self.size, "float32")

    def fill(self, buffer: tir.Buffer, value: float) -> tir.Stmt:
        return self.vector(lambda l: tirx.BufferStore(buffer, tir.f32(value), [l]), self.size)

    def sweep(self, step: Callable[[Place], Iterable[tir.Stmt]]) -> tir.Stmt:
        """``step`` for all elements of the rows, a vector at a time."""
        if not self.along:

            def one(k):
                return tir.seq(step(Place(lambda l: self.coordinates(0, k, l), None, 0)))

            return tir.loop("k", self.extent, one)
        rounds = self.extent // self.width
        stmts = []
        if rounds:

            def several(k):
                places = (self._place(r, k * tir.i64(self.width), u) for r, u in self._slots(self.unroll))
                return tir.seq(s for place in places for s in step(place))

            stmts.append(tir.loop("k", rounds, several))
        for u, start in enumerate(range(rounds * self.width, self.extent, self.lanes)):
            seen = max(0, start + self.lanes - self.extent)
            for r in range(self.rows):
                stmts.extend(step(self._place(r, tir.i64(start - seen - u * self.lanes), u, seen)))
        return tir.seq(stmts)

    def states(self, step: Callable[[Place], Iterable[tir.Stmt]]) -> tir.Stmt:
        """``step`` for every vector of a state; what the place has no index for is not an element."""
        places = (Place(None, None, r * self.unroll + u, r) for r, u in self._slots(self.unroll))
        return tir.seq(s for place in places for s in step(place))

    def _slots(self, unroll: int):
        return ((r, u) for r in range(self.rows) for u in range(unroll))

    def _place(self, r: int, base, u: int, seen: int = 0) -> Place:
        start = base + tir.i64(u * self.lanes)
        fresh = (lambda l: l >= tir.i64(seen)) if seen else None
        return Place(lambda l: self.coordinates(r, start + l, tir.i64(0)), fresh, r * self.unroll + u, r)

    def fold_in(self, acc: tir.Buffer, place: Place, value: Callable, combine: Callable) -> tir.Stmt:
        """``acc[slot] = combine(acc[slot], value(l))``."""

        def lane(l):
            at = tir.i64(place.slot * self.lanes) + l
            return tirx.BufferStore(acc, combine(tir.load(acc, at), value(l)), [at])

        return self.vector(lane)

    def fold(self, acc: tir.Buffer, combine: Callable) -> list[tir.Stmt]:
        """Folds the accumulators of each row into the one that ``get`` reads."""
        return self._halve(acc, self.width, 1 if self.along else self.lanes, combine)

    def fold_rows(self, acc: tir.Buffer, combine: Callable) -> list[tir.Stmt]:
        """Folds what ``set`` wrote for all the rows at hand into element 0."""
        if not self.along:
            return self._halve(acc, self.lanes, 1, combine)
        total = tir.load(acc, tir.i64(0))
        for r in range(1, self.rows):
            total = combine(total, tir.load(acc, tir.i64(r * self.width)))
        return [tirx.BufferStore(acc, total, [tir.i64(0)])] if self.rows > 1 else []

    def _halve(self, acc: tir.Buffer, width: int, until: int, combine: Callable) -> list[tir.Stmt]:
        stmts = []
        while width > until:
            width //= 2
            for r in range(self.rows):

                def lane(l, first=r * self.width, half=width):
                    at = tir.i64(first) + l
                    value = combine(tir.load(acc, at), tir.load(acc, at + tir.i64(half)))
                    return tirx.BufferStore(acc, value, [at])

                stmts.append(self.vector(lane, width) if width > 1 else lane(tir.i64(0)))
        return stmts

    def get(self, acc: tir.Buffer, l, r: int):
        """What ``fold`` made of row ``r``, or of the row of lane ``l``."""
        return tir.load(acc, tir.i64(r * self.width) if self.along else l)

    def set(self, acc: tir.Buffer, value: Callable) -> list[tir.Stmt]:
        """``acc = value(l, r)`` once per row."""
        if not self.along:
            return [self.vector(lambda l: tirx.BufferStore(acc, value(l, 0), [l]))]
        zero = tir.i64(0)
        return [tirx.BufferStore(acc, value(zero, r), [tir.i64(r * self.width)]) for r in range(self.rows)]


def add(a, b):
    return a + b


def maximum(a, b):
    """Either; NaN only if ``b`` is NaN.  Good where a NaN shows itself later anyway."""
    return tirx.Select(a > b, a, b)


def minimum(a, b):
    """Either; NaN only if ``b`` is NaN."""
    return tirx.Select(a < b, a, b)


def kernel(func: tirx.PrimFunc, axis: int, count: int, cost: int, cpu: Cpu, body: Callable) -> tirx.PrimFunc:
    """``func`` with the statements ``body(row)`` for each row; a row is ``count`` axes from ``axis`` on.

    ``cost`` is about how many instructions an element takes.
    """
    shape = tir.shape_of(func.params[0])
    lead, mid, tail = shape[:axis], shape[axis : axis + count], shape[axis + count :]
    outer, extent, inner = prod(lead), prod(mid), prod(tail)
    along = inner == 1
    lanes = min(cpu.lanes, vector.power_below(extent if along else inner))
    together = min(_UNROLL, vector.power_below(outer)) if along and extent <= _SHORT else 1
    unroll = min(_UNROLL // together, vector.power_below(max(1, extent // lanes))) if along else 1
    streamed = along and extent % lanes == 0 and lanes >= 8 and stream.pays(func.params[-1], cpu)
    # Of a row that fills much of the cache itself, the next one would push it out.
    far = along and 4 * prod(shape) > cpu.l2 and 32 * extent <= cpu.l2
    blocks = vector.Steps(outer, together)
    steps = vector.Steps(inner, 1 if along else lanes)

    def one(indices):
        block, which = indices
        first, base = blocks.start(block), steps.start(which)

        def coordinates(r, k, l):
            last = [tir.i64(0)] * len(tail) if along else tir.unflatten(base + l, tail)
            return [*tir.unflatten(first + tir.i64(r), lead), *tir.unflatten(k, mid), *last]

        return tir.seq(body(Row(coordinates, extent, lanes, unroll, together, along, streamed, far)))

    # A kernel may use its output rows as scratch, so no two threads may share a row: the last step, which
    # overlaps the one before, waits until that is done.
    work = prod(shape) * cost
    code = [vector.spread((blocks.whole, steps.whole), work, one)]
    if blocks.overlap:
        code.append(one([tir.i64(blocks.whole), tir.i64(0)]))
    if steps.overlap:
        code.append(vector.spread((outer,), work, lambda o: one([*o, tir.i64(steps.whole)])))
    code = tir.seq(code)
    if streamed or far:
        code = stream.imported(code, lanes, fence=streamed)
    return tirx.PrimFunc(func.params, code, func.ret_type, func.attrs).with_attr(tir.NOALIAS, True)
