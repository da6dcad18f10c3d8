"""Indices of a lookup, checked: a kernel must not read outside its table, whatever the caller passes."""

from math import prod

from tvm import tirx
from tvm.ir import StringImm

from sparsec.schedules import tir


def checked_index(shape: tuple[int, ...], dtype: str, sizes: tuple[int, ...], who: str) -> tirx.PrimFunc:
    """The function ``(index, checked)``, both ``dtype`` (int32 or int64) of ``shape``.

    ``sizes`` has the extent of the axis that is looked up, or one for each coordinate along the last axis of
    ``index``.  A negative index counts from the end; ``checked`` is in ``[0, size)``.  An index outside
    ``[-size, size)`` ends the run with an error that names ``who``.
    """
    index, checked = (
        tirx.decl_buffer([tir.i64(d) for d in shape], dtype, name=name) for name in ("index", "checked")
    )
    lead = shape if len(sizes) == 1 else shape[:-1]

    def one(i):
        at = tir.unflatten(i, lead)
        if len(sizes) == 1:
            return _check(index, checked, at, sizes[0], who)
        return tir.seq([_check(index, checked, [*at, tir.i64(c)], size, who) for c, size in enumerate(sizes)])

    func = tirx.PrimFunc([index, checked], tir.loop("i", prod(lead), one, independent=True))
    return func.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True, tir.OP_PATTERN: tir.OPAQUE})


def _check(index: tir.Buffer, checked: tir.Buffer, at: list, size: int, who: str) -> tir.Stmt:
    value = tir.load(index, *at).astype("int64")
    inside = tirx.all(value >= tir.i64(-size), value < tir.i64(size))
    message = [StringImm(f"{who}: an index is outside [-{size}, {size})")]
    wrapped = tirx.Select(value < tir.i64(0), value + tir.i64(size), value)
    return tir.seq(
        [
            tirx.AssertStmt(inside, StringImm("IndexError"), message),  # TVM's order, not its signature's
            tirx.BufferStore(checked, wrapped.astype(tir.dtype_of(checked)), at),
        ]
    )
