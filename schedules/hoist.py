"""One function of ``math`` per statement: operands of nested calls get a place on the stack.

TVM's code generator simplifies every expression with all its ``let`` bindings written out, which doubles and
doubles again in ``tanh(log(1 + exp(x)))``.  A value that went through memory ends the chain; LLVM turns that
memory into registers.
"""

import functools

import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import math, tir, vector


def hoist(func: tirx.PrimFunc, level: str) -> tirx.PrimFunc:
    """``func`` with every operand of a lowered function that is not a plain load stored first.

    The functions become those of the CPU ``level``.
    """
    body = tvm_ffi.structural_mutate(func.body, [(tirx.For, _loop), (tirx.BufferStore, _store)])
    body = tvm_ffi.structural_mutate(body, [(ir.Call, functools.partial(_for_level, level))])
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


def _for_level(level: str, node, mutator):
    op = math.for_level(node.op, level) if isinstance(node.op, ir.Op) else node.op
    return ir.Call(op, [mutator.mutate(a) for a in node.args], node.attrs, node.ty_args, ret_ty=node.ty)


def _loop(node, mutator):
    if node.kind != tirx.ForKind.VECTORIZED:
        return tirx.For(
            node.loop_var,
            node.min,
            node.extent,
            node.kind,
            mutator.mutate(node.body),
            node.thread_binding,
            node.annotations,
        )
    stores = list(node.body.seq) if isinstance(node.body, tirx.SeqStmt) else [node.body]
    if not all(isinstance(s, tirx.BufferStore) for s in stores) or not isinstance(node.min, tirx.IntImm):
        return node
    split = [_split(s, [node.loop_var], int(node.extent)) for s in stores]
    body = tir.seq(s for _, parts in split for s in parts)
    loop = tirx.For(node.loop_var, node.min, node.extent, node.kind, body, None, node.annotations)
    return tir.seq([*tir.alloc(b for scratch, _ in split for b in scratch), loop])


def _store(node, _):
    scratch, stores = _split(node, [], 1)
    return tir.seq([*tir.alloc(scratch), *stores])


def _split(store, index: list, extent: int) -> tuple[list, list]:
    """The scratch buffers and the statements that ``store`` becomes; ``index`` addresses the current lane."""
    scratch, stores = [], []

    def visit(node, mutator):
        name = node.op.name if isinstance(node.op, ir.Op) else ""
        if name.endswith(".if_then_else"):
            return node  # what it guards must not be computed outside
        args = [mutator.mutate(a) for a in node.args]
        if name in math.lowered():
            args = [place(a) for a in args]
        return ir.Call(node.op, args, node.attrs, node.ty_args, ret_ty=node.ty)

    def place(value):
        if isinstance(value, (tir.TensorLoad, tirx.FloatImm, ir.Var, tirx.Broadcast)):
            return value
        lanes = tir.lanes_of(value)
        dtype = str(value.ty.dtype).partition("x")[0]
        buffer = vector.stack("h", max(extent, lanes), dtype)
        scratch.append(buffer)
        if lanes > 1:
            at = [tirx.Ramp(tir.i64(0), tir.i64(1), lanes)]
        else:
            at = index or [tir.i64(0)]
        stores.append(tirx.BufferStore(buffer, value, at))
        return tirx.BufferLoad(buffer, at)

    value = tvm_ffi.structural_mutate(store.value, [(ir.Call, visit), (tirx.Let, lambda node, _: node)])
    stores.append(tirx.BufferStore(store.buffer, value, list(store.indices)))
    return scratch, stores
