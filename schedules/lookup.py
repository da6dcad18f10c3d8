"""Indices of a lookup, checked: a kernel must not read outside its table, whatever the caller passes."""

from math import prod

from tvm import tirx
from tvm.ir import StringImm

from sparsec.schedules import tir


def checked_index(shape: tuple[int, ...], dtype: str, size: int, who: str) -> tirx.PrimFunc:
    """The function ``(index, checked)`` for a table of ``size`` entries.

    ``index`` is int32 or int64 of ``shape`` and counts from the end where negative; ``checked`` is int32 in
    ``[0, size)``.  An index outside ``[-size, size)`` ends the run with an error that names ``who``.
    """
    count = prod(shape)
    index, checked = (
        tirx.decl_buffer([tir.i64(d) for d in shape], kind, name=name)
        for kind, name in ((dtype, "index"), ("int32", "checked"))
    )

    def one(i):
        at = tir.unflatten(i, shape)
        value = tir.load(index, *at).astype("int64")
        inside = tirx.all(value >= tir.i64(-size), value < tir.i64(size))
        message = [StringImm(f"{who}: an index is outside [-{size}, {size})")]
        wrapped = tirx.Select(value < tir.i64(0), value + tir.i64(size), value)
        return tir.seq(
            [
                tirx.AssertStmt(inside, StringImm("IndexError"), message),  # TVM's order, not its signature's
                tirx.BufferStore(checked, wrapped.astype("int32"), at),
            ]
        )

    func = tirx.PrimFunc([index, checked], tir.loop("i", count, one))
    return func.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True, tir.OP_PATTERN: tir.OPAQUE})
