"""Assertions on a GPU: there is nobody to raise, so a kernel leaves a number that the runtime looks at.

    assert c, text; y[i] = v    becomes    if (!c) fault[0] = code; y[i] = c ? v : 0

``fault`` is one int32 that is 0 before a run.  What follows a failed assertion is stored as zero, so that
kernels which come before anybody has looked do not read outside their buffers.
"""

import tvm_ffi
from tvm import tirx

from sparsec.schedules import tir


def has_assertions(func: tirx.PrimFunc) -> bool:
    found: list = []
    tvm_ffi.structural_walk(func.body, (tirx.AssertStmt, found.append))
    return bool(found)


def to_faults(func: tirx.PrimFunc, texts: list[str]) -> tirx.PrimFunc:
    """``func`` with a last parameter ``fault``; appends the text of each code, from 1 on, to ``texts``."""
    fault = tirx.decl_buffer([tir.i64(1)], "int32", name="fault")

    def code(node: tirx.AssertStmt) -> int:
        text = "".join(part.value for part in node.message_parts)
        if text not in texts:
            texts.append(text)
        return texts.index(text) + 1

    def guarded(stmt: tir.Stmt, condition) -> tir.Stmt:
        def store(node, mutator):
            if node.buffer.same_as(fault):
                return node
            zero = tirx.const(0, tir.dtype_of(node.buffer))
            return tirx.BufferStore(node.buffer, tirx.Select(condition, node.value, zero), node.indices)

        return tvm_ffi.structural_mutate(stmt, [(tirx.BufferStore, store)])

    def sequence(node, mutator):
        stmts, conditions = [], []
        for stmt in node.seq:
            if isinstance(stmt, tirx.AssertStmt):
                note = tirx.BufferStore(fault, tir.i32(code(stmt)), [tir.i64(0)])
                stmts.append(tirx.IfThenElse(tirx.Not(stmt.condition), note, None))
                conditions.append(stmt.condition)
            else:
                stmt = mutator.mutate(stmt)
                stmts.append(guarded(stmt, tirx.all(*conditions)) if conditions else stmt)
        return tir.seq(stmts)

    body = tvm_ffi.structural_mutate(func.body, [(tirx.SeqStmt, sequence)])
    return tirx.PrimFunc([*func.params, fault], body, func.ret_type, func.attrs)
