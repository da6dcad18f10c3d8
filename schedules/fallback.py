"""Whatever has no rule of its own: every map and every reduction of the function, vectorised one by one.

Producers are inlined first where that computes nothing costly twice; what follows a reduction elementwise is
computed on its result while it is still in registers.
"""

from dataclasses import replace

from tvm import tirx

from sparsec.schedules import access, elementwise, reduction, tir
from sparsec.schedules.access import Nest
from sparsec.schedules.target import Cpu

#: A producer whose elements cost no more than this may be computed again for each use.
_FREE = 3


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """The function with each nest vectorised; None for one that is not made of nests."""
    parts = access.nests(func)
    if isinstance(parts, str):
        return None
    buffers, found = parts
    kept = set(func.params)
    found = inline(found, kept)
    stmts = []
    while found:
        nest, *found = found
        follower = reduction.follower(nest, found, kept)
        if follower is not None:
            found = [n for n in found if n is not follower]
        stmts.append(emit(nest, follower, cpu))
    body = tir.seq(stmts)
    live = {s.buffer for s in access.collect(body, tirx.BufferStore)}
    scratch = [b for b in buffers if b in live]
    body = tir.seq([*tir.alloc(scratch), body])
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs).with_attrs({tir.NOALIAS: True})


def emit(nest: Nest, follower: Nest | None, cpu: Cpu) -> tir.Stmt:
    if nest.reduce:
        return reduction.emit(nest, follower, cpu)
    if elementwise.why_not(nest) is None:
        return elementwise.emit(nest, cpu)
    return reduction.serial(nest)


def inline(found: list[Nest], kept: set) -> list[Nest]:
    """The nests with producers substituted into their consumers, in program order."""
    done: list[Nest] = []
    for position, nest in enumerate(found):
        rest = found[position + 1 :]
        if nest.buffer in kept or not _inlinable(nest, done + rest):
            done.append(nest)
            continue
        found[position + 1 :] = [_substitute(nest, consumer) for consumer in rest]
    return done


def _inlinable(nest: Nest, others: list[Nest]) -> bool:
    if elementwise.why_not(nest) is not None or any(n.buffer.same_as(nest.buffer) for n in others):
        return False
    plain = [v for v, _ in nest.spatial]
    axes = [i for i in nest.index if not isinstance(i, tirx.IntImm)]
    if not all(any(i.same_as(v) for v in plain) for i in axes) or len(set(axes)) != len(axes):
        return False
    if any(v not in axes for v, e in nest.spatial if e > 1):
        return False
    # What the nest reads must still hold when its consumers run.
    reads = {load.source for load in nest.loads()}
    if any(n.buffer in reads for n in others if _reads(n, nest.buffer)):
        return False
    evaluations = sum(_uses(n, nest.buffer) * n.volume for n in others)
    price = elementwise.cost(nest.value)
    return (
        evaluations <= nest.volume or price <= _FREE or evaluations <= 2 * nest.volume and price <= 2 * _FREE
    )


def _uses(nest: Nest, buffer) -> int:
    return sum(load.source.same_as(buffer) for load in nest.loads())


def _reads(nest: Nest, buffer) -> bool:
    return _uses(nest, buffer) > 0


def _substitute(producer: Nest, consumer: Nest) -> Nest:
    def on_load(load):
        if not load.source.same_as(producer.buffer):
            return None
        mapping = {
            variable: index
            for variable, index in zip(producer.index, load.indices, strict=True)
            if not isinstance(variable, tirx.IntImm)
        }
        for variable, _ in producer.spatial:
            mapping.setdefault(variable, tirx.const(0, variable.ty))
        return tir.rewrite(producer.value, mapping)

    return replace(consumer, value=tir.rewrite(consumer.value, {}, on_load))
