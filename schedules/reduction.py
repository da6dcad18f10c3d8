"""Sums, means, maxima, minima, products, norms, pools: everything that folds many elements into one.

Two shapes of loop.  Where neighbouring results read neighbouring elements (a reduction over an outer axis, a
pool in channels-last layout), lanes run over the results and each lane folds its own.  Where neighbouring
*operands* are contiguous (a reduction over the last axis), lanes run along the row and several accumulators
are folded into one at the end.
"""

from dataclasses import dataclass, replace

import tvm_ffi
from tvm import tirx

from sparsec.schedules import access, elementwise, math, tir, vector
from sparsec.schedules.access import Nest
from sparsec.schedules.target import Cpu

#: Accumulators per row: enough to hide the latency of an addition behind two loads per cycle.
_ACCUMULATORS = 4


@dataclass(frozen=True)
class Fold:
    """``combine(accumulator, operand)``; ``repeatable`` where folding an operand twice changes nothing."""

    kind: type
    repeatable: bool

    def combine(self, a, b):
        if str(a.ty.dtype) in ("float32", "float64") and self.repeatable:
            # NaN, once seen, stays.  TVM's own fold forgets it at the next element.
            return math.maximum(a, b) if self.kind is tirx.Max else math.minimum(a, b)
        return self.kind(a, b)


_FOLDS = {
    tirx.Add: False,
    tirx.Mul: False,
    tirx.Max: True,
    tirx.Min: True,
    tirx.And: True,
    tirx.Or: True,
}


def split(nest: Nest) -> tuple[Fold, tir.Expr] | None:
    """The fold and the operand of ``buffer[index] = fold(buffer[index], operand)``."""
    kind = type(nest.value)
    if kind not in _FOLDS:
        return None
    a, b = nest.value.a, nest.value.b
    if not _is_own(nest, a):
        a, b = b, a
    if not _is_own(nest, a) or any(l.source.same_as(nest.buffer) for l in access.collect(b, tir.TensorLoad)):
        return None
    return Fold(kind, _FOLDS[kind]), b


def _is_own(nest: Nest, expr) -> bool:
    return (
        isinstance(expr, tir.TensorLoad)
        and expr.source.same_as(nest.buffer)
        and all(_same(i, j) for i, j in zip(expr.indices, nest.index, strict=True))
    )


def _same(a, b) -> bool:
    if isinstance(a, tirx.IntImm) and isinstance(b, tirx.IntImm):
        return int(a.value) == int(b.value)
    return a.same_as(b)


def follower(nest: Nest, rest: list[Nest], kept: set) -> Nest | None:
    """The one map that turns the result of ``nest``, element by element, into something else."""
    if not nest.reduce or nest.buffer in kept or split(nest) is None:
        return None
    readers = [n for n in rest if any(l.source.same_as(nest.buffer) for l in n.loads())]
    if len(readers) != 1 or elementwise.why_not(readers[0]) is not None:
        return None
    reader = readers[0]
    if tir.shape_of(reader.buffer) != tir.shape_of(nest.buffer) or len(reader.spatial) != len(nest.spatial):
        return None
    own = [load for load in reader.loads() if load.source.same_as(nest.buffer)]
    at_own = all(all(_same(i, j) for i, j in zip(l.indices, reader.index, strict=True)) for l in own)
    plain = all(
        _same(i, v) or e == 1 for i, (v, e) in zip(reader.index, reader.spatial, strict=False)
    ) and len(reader.index) == len(reader.spatial)
    same = all(_same(i, v) or e == 1 for i, (v, e) in zip(nest.index, nest.spatial, strict=False))
    ready = rest[: rest.index(reader)]
    early = {n.buffer for n in ready}
    if not (at_own and plain and same) or any(l.source in early for l in reader.loads()):
        return None
    return reader


def serial(nest: Nest) -> tir.Stmt:
    """The nest as plain loops: right for everything, fast for nothing."""

    def result(outer):
        names = {v: i for (v, _), i in zip(nest.spatial, outer, strict=True)}
        index = [tir.rewrite(i, names) for i in nest.index]

        def step(inner):
            inside = {**names, **{v: i for (v, _), i in zip(nest.reduce, inner, strict=True)}}
            at = [tir.rewrite(i, inside) for i in nest.index]
            return tirx.BufferStore(nest.buffer, tir.rewrite(nest.value, inside), at)

        loops = vector.nest_loops(nest.reduce, step)
        if nest.init is None:
            return loops
        return tir.seq([tirx.BufferStore(nest.buffer, tir.rewrite(nest.init, names), index), loops])

    return vector.nest_loops(nest.spatial, result)


def emit(nest: Nest, then: Nest | None, cpu: Cpu) -> tir.Stmt:
    """The vectorised loops of a reduction and of the map ``then`` that follows it."""
    parts = split(nest)
    if parts is None or not _is_identity(parts[0], nest.init):
        return tir.seq([serial(nest)] + ([elementwise.emit(then, cpu)] if then is not None else []))
    fold, operand = parts
    work = nest.volume * elementwise.cost(nest.value)
    total = tirx.Var("total", operand.ty)
    result = total
    if then is not None:
        renamed = {w: v for (v, _), (w, _) in zip(nest.spatial, then.spatial, strict=True)}
        then = then.substitute(renamed)
        result = tir.rewrite(then.value, {}, lambda load: total if load.source.same_as(nest.buffer) else None)
        nest = replace(nest, buffer=then.buffer, index=then.index)
    # Operand and result in one value, so that both see the same merged loops.
    nest = replace(nest, value=tvm_ffi.convert([operand, result]))
    nest, table = access.merge(nest)
    kernel = _Kernel(nest, table, fold, total, work, cpu)
    return kernel.emit()


def _is_identity(fold: Fold, init) -> bool:
    if isinstance(init, tirx.FloatImm | tirx.IntImm):
        value = init.value
        if fold.kind in (tirx.Add, tirx.Or):
            return value == 0
        if fold.kind in (tirx.Mul, tirx.And):
            return value == 1
    return _same_value(init, {tirx.Max: tirx.min_value, tirx.Min: tirx.max_value}.get(fold.kind))


def _same_value(init, limit) -> bool:
    if limit is None:
        return False
    bound = limit(str(init.ty.dtype))
    return tvm_ffi.structural_equal(init, bound)


class _Kernel:
    """One merged reduction: ``nest.value`` is ``[operand, result over total]``."""

    def __init__(self, nest: Nest, table: list[dict], fold: Fold, total, work: int, cpu: Cpu):
        self.nest, self.table, self.fold, self.total, self.work, self.cpu = (
            nest,
            table,
            fold,
            total,
            work,
            cpu,
        )
        operand, self.result = nest.value
        self.operand = elementwise.keep_nan(operand)
        self.result = elementwise.keep_nan(self.result)
        self.dtype = str(operand.ty.dtype)
        self.dtypes = {self.dtype, tir.dtype_of(nest.buffer), *(tir.dtype_of(l.source) for l in nest.loads())}
        # The store and the loads of the operand come first in the table.
        self.rows = table[: 1 + len(access.collect(operand, tir.TensorLoad))]
        self.init = self._start()

    def _start(self):
        """TVM starts a maximum at the lowest finite value; a row of -inf is -inf all the same."""
        if self.dtype.startswith("float") and self.fold.kind in (tirx.Max, tirx.Min):
            return tirx.const(float("-inf") if self.fold.kind is tirx.Max else float("inf"), self.dtype)
        return self.nest.init

    def emit(self) -> tir.Stmt:
        across = self._across()
        along = self._along()
        if across is not None and (self.nest.spatial[across][1] >= self.cpu.lanes or not along):
            return self.lanes_across(across)
        if along:
            return self.lanes_along()
        if self.nest.spatial:
            return self.lanes_across(len(self.nest.spatial) - 1)
        return self.lanes_along()

    def _across(self) -> int | None:
        for position in range(len(self.nest.spatial) - 1, -1, -1):
            variable, extent = self.nest.spatial[position]
            steps = [row[variable] for row in self.rows]
            if extent >= 4 and steps[0] == 1 and all(s in (0, 1) for s in steps):
                return position
        return None

    def _along(self) -> bool:
        if not self.nest.reduce:
            return False
        variable, extent = self.nest.reduce[-1]
        steps = [row[variable] for row in self.rows[1:]]
        return extent >= 4 and 1 in steps and all(s in (0, 1) for s in steps)

    def _store(self, names: dict, value) -> tir.Stmt:
        index = [tir.rewrite(i, names) for i in self.nest.index]
        return tirx.BufferStore(
            self.nest.buffer, tir.rewrite(self.result, {**names, self.total: value}), index
        )

    def lanes_across(self, position: int) -> tir.Stmt:
        variable, extent = self.nest.spatial[position]
        outer = self.nest.spatial[:position] + self.nest.spatial[position + 1 :]
        lanes = vector.lanes_for(self.cpu, self.dtypes, extent)
        steps, unroll = vector.steps_for(extent, lanes, _ACCUMULATORS)

        def tile(indices):
            *rest, which = indices
            names = dict(zip((v for v, _ in outer), rest, strict=True))
            base = steps.start(which)
            acc = vector.stack("acc", steps.width, self.dtype)

            def each(body):
                return tir.loop(
                    "u",
                    unroll,
                    lambda u: tir.vector_loop(lanes, lambda l: body(u * tir.i64(lanes) + l)),
                    "UNROLLED",
                )

            def step(inner):
                inside = {**names, **{v: i for (v, _), i in zip(self.nest.reduce, inner, strict=True)}}

                def add(e):
                    operand = tir.rewrite(self.operand, {**inside, variable: base + e})
                    return tirx.BufferStore(acc, self.fold.combine(tir.load(acc, e), operand), [e])

                return each(add)

            return tir.seq(
                [
                    *tir.alloc([acc]),
                    each(lambda e: tirx.BufferStore(acc, self.init, [e])),
                    vector.nest_loops(self.nest.reduce, step),
                    each(lambda e: self._store({**names, variable: base + e}, tir.load(acc, e))),
                ]
            )

        return vector.spread((*(e for _, e in outer), steps.count), self.work, tile)

    def lanes_along(self) -> tir.Stmt:
        *outer, (variable, extent) = self.nest.reduce
        lanes = vector.lanes_for(self.cpu, self.dtypes, extent)
        unroll = min(_ACCUMULATORS, vector.power_below(max(1, extent // lanes)))
        width = lanes * unroll
        rounds = extent // width

        def row(indices):
            names = dict(zip((v for v, _ in self.nest.spatial), indices, strict=True))
            acc = vector.stack("acc", width, self.dtype)

            def fold_in(inside, base, slot: int, repeated: int = 0):
                def lane(l):
                    operand = tir.rewrite(self.operand, {**inside, variable: base + l})
                    if repeated and not self.fold.repeatable:
                        operand = tirx.Select(l >= tir.i64(repeated), operand, self.init)
                    at = tir.i64(slot * lanes) + l
                    return tirx.BufferStore(acc, self.fold.combine(tir.load(acc, at), operand), [at])

                return tir.vector_loop(lanes, lane)

            def sweep(inner):
                inside = {**names, **{v: i for (v, _), i in zip(outer, inner, strict=True)}}
                main = tir.loop(
                    "k",
                    rounds,
                    lambda k: tir.seq(
                        fold_in(inside, k * tir.i64(width) + tir.i64(u * lanes), u) for u in range(unroll)
                    ),
                )
                rest = []
                for slot, start in enumerate(range(rounds * width, extent, lanes)):
                    repeated = max(0, start + lanes - extent)
                    rest.append(fold_in(inside, tir.i64(start - repeated), slot, repeated))
                return tir.seq([main, *rest])

            return tir.seq(
                [
                    *tir.alloc([acc]),
                    tir.vector_loop(width, lambda l: tirx.BufferStore(acc, self.init, [l])),
                    vector.nest_loops(outer, sweep),
                    *self._halve(acc, width),
                    self._store(names, tir.load(acc, tir.i64(0))),
                ]
            )

        return vector.spread(tuple(e for _, e in self.nest.spatial), self.work, row)

    def _halve(self, acc, width: int) -> list[tir.Stmt]:
        """Folds the upper half of the accumulators onto the lower until one is left."""
        stmts = []
        while width > 1:
            width //= 2

            def lane(l, half=width):
                value = self.fold.combine(tir.load(acc, l), tir.load(acc, l + tir.i64(half)))
                return tirx.BufferStore(acc, value, [l])

            stmts.append(tir.vector_loop(width, lane))
        return stmts
