"""What a block reads and writes, and how the addresses move along each of its loops.

A ``Nest`` is one computation of an unscheduled function: a store (with an initial value, if it reduces) under
loops that all start at zero.  Kernels are emitted from nests; a function that is not made of nests alone is
left as it is.
"""

from dataclasses import dataclass, replace

import tvm_ffi
from tvm import ir, sym, tirx

from sparsec.schedules import tir


@dataclass(frozen=True)
class Nest:
    """``for spatial: [buffer[index] = init]; for reduce: buffer[index] = value``.

    ``spatial`` and ``reduce`` are ``(variable, extent)`` pairs, outermost first.  ``init`` is None for a map.
    """

    name: str
    spatial: tuple
    reduce: tuple
    buffer: tir.Buffer
    index: tuple
    value: tir.Expr
    init: tir.Expr | None

    @property
    def dims(self) -> tuple:
        return self.spatial + self.reduce

    @property
    def volume(self) -> int:
        return _product(e for _, e in self.dims)

    def loads(self) -> list[tir.TensorLoad]:
        """Every load of the value, those inside indices too."""
        return collect(self.value, tir.TensorLoad)

    def substitute(self, mapping: dict) -> "Nest":
        """The nest with variables replaced in its store and value; its loops are the caller's business."""
        value = tir.rewrite(self.value, mapping)
        init = None if self.init is None else tir.rewrite(self.init, mapping)
        return replace(self, value=value, init=init, index=tuple(tir.rewrite(i, mapping) for i in self.index))


def _product(values) -> int:
    total = 1
    for value in values:
        total *= value
    return total


def collect(expr, kind: type) -> list:
    """All nodes of ``kind`` in ``expr``, in post order."""
    found = []
    tvm_ffi.structural_walk(expr, (kind, lambda node: found.append(node)))
    return found


def uses(expr, variable) -> bool:
    return any(v.same_as(variable) for v in collect(expr, ir.Var))


def nests(func: tirx.PrimFunc) -> tuple[list[tir.Buffer], list[Nest]] | str:
    """The buffers that ``func`` allocates and its nests in order, or why it is not made of nests."""
    root = func.body
    if not isinstance(root, tir.BlockRealize) or root.block.iter_vars or root.block.match_buffers:
        return "it has no plain root block"
    found: list[Nest] = []
    problem = _walk(root.block.body, found)
    return problem or (list(root.block.alloc_buffers), found)


def _walk(stmt, found: list[Nest]) -> str | None:
    if isinstance(stmt, tirx.SeqStmt):
        for child in stmt.seq:
            if problem := _walk(child, found):
                return problem
        return None
    loops = {}
    while isinstance(stmt, tirx.For):
        if stmt.kind != tirx.ForKind.SERIAL or not _is(stmt.min, 0) or stmt.annotations:
            return "it is scheduled already"
        loops[stmt.loop_var] = stmt.extent
        stmt = stmt.body
    if not isinstance(stmt, tir.BlockRealize):
        return f"it holds {type(stmt).__name__} outside of a block"
    nest = _nest(stmt, loops)
    if isinstance(nest, str):
        return f"block {stmt.block.name_hint}: {nest}"
    found.append(nest)
    return None


def _nest(realize, loops: dict) -> Nest | str:
    block = realize.block
    if not _is(realize.predicate, 1):
        return "it has a predicate"
    store, init = block.body, block.init
    if not isinstance(store, tirx.BufferStore) or not (init is None or isinstance(init, tirx.BufferStore)):
        return "its body is not one store"
    bound = [v for v in realize.iter_values if isinstance(v, ir.Var)]
    if not all(isinstance(v, ir.Var) or _is(v, 0) for v in realize.iter_values) or len(set(bound)) != len(
        bound
    ):
        return "its loops are not its axes"
    if {v for v in loops if not _is(loops[v], 1)} - set(bound):
        return "it has a loop without an axis"
    groups = {tirx.IterVar.DataPar: [], tirx.IterVar.CommReduce: []}
    for axis in block.iter_vars:
        if axis.iter_type not in groups or not isinstance(axis.dom.extent, tirx.IntImm):
            return f"axis {axis.var.name} is neither spatial nor a reduction of static extent"
        if str(axis.var.ty.dtype) != "int64":
            return f"axis {axis.var.name} is {axis.var.ty.dtype}, not int64"
        groups[axis.iter_type].append((axis.var, int(axis.dom.extent)))
    spatial, reduce = (tuple(g) for g in groups.values())
    if bool(reduce) != (init is not None):
        return "it reduces without an initial value"
    value = init.value if init is not None else None
    return Nest(block.name_hint, spatial, reduce, store.buffer, tuple(store.indices), store.value, value)


def _is(expr, value: int) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr.value) == value


# Addresses --------------------------------------------------------------------------------------------


def analyzer(dims) -> sym.Analyzer:
    result = sym.Analyzer()
    for variable, extent in dims:
        zero = tirx.const(0, variable.ty)
        result.bind(variable, ir.Range.from_min_extent(zero, tirx.const(extent, variable.ty)))
    return result


def offset(buffer: tir.Buffer, indices) -> tir.Expr:
    """The row-major position of an element."""
    flat = None
    for index, extent in zip(indices, tir.shape_of(buffer), strict=True):
        flat = index if flat is None else flat * tirx.const(extent, index.ty) + index
    return tir.i64(0) if flat is None else flat


def stride(ana: sym.Analyzer, flat, variable) -> int | None:
    """How far ``flat`` moves when ``variable`` grows by one; None where that is not one number."""
    if not uses(flat, variable):
        return 0
    step = ana.simplify(tir.rewrite(flat, {variable: variable + tirx.const(1, variable.ty)}) - flat)
    return int(step.value) if isinstance(step, tirx.IntImm) else None


def strides(nest: Nest) -> list[dict]:
    """Per access, the store first: the stride along each variable of the nest."""
    ana = analyzer(nest.dims)
    accesses = [(nest.buffer, nest.index)] + [(l.source, l.indices) for l in nest.loads()]
    flats = [ana.simplify(offset(buffer, index)) for buffer, index in accesses]
    return [{v: stride(ana, flat, v) for v, _ in nest.dims} for flat in flats]


def outside_indices(nest: Nest) -> set:
    """Variables that the value uses other than in the index of a load (a condition, a number made of it)."""

    def blank(load):
        return tirx.BufferLoad(load.source, [tirx.const(0, i.ty) for i in load.indices])

    return set(collect(tir.rewrite(nest.value, {}, blank), ir.Var))


def merge(nest: Nest) -> tuple[Nest, list[dict]]:
    """The nest with neighbouring loops fused wherever every address runs through both as through one.

    Returns the new nest and its strides; loops of one step are gone.
    """
    table = strides(nest)
    single = outside_indices(nest)
    kinds, mapping = [], {}
    for dims in (nest.spatial, nest.reduce):
        groups: list[list] = []
        for variable, extent in dims:
            if extent == 1:
                mapping[variable] = tirx.const(0, variable.ty)
                continue
            previous = groups[-1][-1] if groups else None
            if (
                previous
                and variable not in single
                and previous[0] not in single
                and all(
                    None not in (row[variable], row[previous[0]])
                    and row[previous[0]] == row[variable] * extent
                    for row in table
                )
            ):
                groups[-1].append((variable, extent))
            else:
                groups.append([(variable, extent)])
        kinds.append(tuple(_fuse(group, mapping) for group in groups))
    fused = replace(nest.substitute(mapping), spatial=kinds[0], reduce=kinds[1])
    ana = analyzer(fused.dims)
    fused = replace(
        fused,
        index=tuple(ana.simplify(i) for i in fused.index),
        value=tir.rewrite(
            fused.value,
            {},
            lambda load: tirx.BufferLoad(load.source, [ana.simplify(i) for i in load.indices]),
        ),
    )
    return fused, strides(fused)


def _fuse(group: list, mapping: dict):
    if len(group) == 1:
        return group[0]
    total = _product(e for _, e in group)
    variable = tirx.Var("".join(v.name for v, _ in group), group[0][0].ty)
    inner = 1
    for original, extent in reversed(group):
        part = tirx.floordiv(variable, tirx.const(inner, variable.ty)) if inner > 1 else variable
        if inner * extent != total:
            part = tirx.floormod(part, tirx.const(extent, variable.ty))
        mapping[original] = part
        inner *= extent
    return variable, total
