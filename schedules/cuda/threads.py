"""Functions that are written as loops: a thread for each step of the loops whose steps need no order.

What such loops leave runs in its thread as it is written, vectors included.  A statement without such a loop
is a kernel of one thread.
"""

import math

import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import tir
from sparsec.schedules.cuda.target import THREADS, Gpu

_FREE = (tirx.ForKind.PARALLEL, tirx.ForKind.VECTORIZED)


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The function with a kernel for each outermost statement; None for one that is made of blocks."""
    blocks: list = []
    tvm_ffi.structural_walk(func.body, (tir.Block, blocks.append))
    if blocks:
        return None
    body = tir.seq(_kernel(stmt) for stmt in _parts(func.body))
    return tirx.PrimFunc(func.params, in_registers(body), func.ret_type, func.attrs)


def _parts(body: tir.Stmt) -> list[tir.Stmt]:
    """The loops that become kernels, and between them what one thread does."""
    parts: list[list[tir.Stmt]] = []
    alone = False
    for stmt in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        spread = isinstance(stmt, tirx.For) and _independent(stmt)
        if spread or not (parts and alone):
            parts.append([])
        parts[-1].append(stmt)
        alone = not spread
    return [tir.seq(part) for part in parts]


def _kernel(stmt: tir.Stmt) -> tir.Stmt:
    variables, extents = [], []
    while isinstance(stmt, tirx.For) and _independent(stmt):
        variables.append(stmt.loop_var)
        extents.append(int(stmt.extent))
        stmt = stmt.body
    total = math.prod(extents)
    if not total:
        return tir.nothing()
    width = min(THREADS, total)

    def thread(index):
        inside = serial(stmt, dict(zip(variables, tir.unflatten(index, tuple(extents)), strict=True)))
        return tirx.IfThenElse(index < tir.i64(total), inside, None) if total % width else inside

    return launch(-(-total // width), width, lambda b, t: thread(b * tir.i64(width) + t))


def _independent(loop: tirx.For) -> bool:
    return loop.kind in _FREE or tir.INDEPENDENT in loop.annotations


def launch(blocks: int, threads: int, body) -> tir.Stmt:
    """``body(block, thread)`` as one kernel."""

    def bound(name: str, extent: int, inner):
        index = tir.var(name.replace(".", "_"))
        axis = tirx.IterVar(None, index, tirx.IterVar.ThreadIndex, name)
        return tirx.For(index, tir.i64(0), tir.i64(extent), tirx.ForKind.THREAD_BINDING, inner(index), axis)

    return bound("blockIdx.x", blocks, lambda b: bound("threadIdx.x", threads, lambda t: body(b, t)))


def serial(stmt: tir.Stmt, places: dict) -> tir.Stmt:
    """``stmt`` with every loop run by the thread that meets it, and variables replaced."""

    def visit_loop(loop, mutator):
        low, extent = mutator.mutate(loop.min), mutator.mutate(loop.extent)
        return tirx.For(loop.loop_var, low, extent, tirx.ForKind.SERIAL, mutator.mutate(loop.body))

    def visit_variable(node, mutator):
        return places.get(node, node)

    return tvm_ffi.structural_mutate(stmt, [(tirx.For, visit_loop), (ir.Var, visit_variable)])


def in_registers(stmt: tir.Stmt) -> tir.Stmt:
    """``stmt`` with every buffer that it allocates local to the thread."""
    own: dict = {}

    def allocate(node, mutator):
        old = node.buffer
        new = own[old] = tirx.decl_buffer(tir.shape_of(old), tir.dtype_of(old), old.name, scope="local")
        return tirx.AllocBuffer(new)

    def load(node, mutator):
        index = [mutator.mutate(i) for i in node.indices]
        return tirx.BufferLoad(own.get(node.source, node.source), index)

    def store(node, mutator):
        index = [mutator.mutate(i) for i in node.indices]
        return tirx.BufferStore(own.get(node.buffer, node.buffer), mutator.mutate(node.value), index)

    return tvm_ffi.structural_mutate(
        stmt, [(tirx.AllocBuffer, allocate), (ir.TensorLoad, load), (tirx.BufferStore, store)]
    )
