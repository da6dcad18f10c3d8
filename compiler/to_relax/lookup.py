"""Gather with checked indices, and Slice."""

import numpy as np
import onnx_ir as ir
from tvm import relax, te

from sparsec.compiler.errors import CompileError
from sparsec.compiler.to_relax.linear import attribute
from sparsec.schedules.lookup import checked_index


def gather(importer, node: ir.Node, inputs):
    """Entries of ``data`` along ``axis``; a constant index is checked now, any other at run time."""
    data, index = node.inputs
    axis = attribute(node, "axis", 0) % len(data.shape)
    size = int(data.shape[axis])
    if index.const_value is not None:
        where = relax.const(constant_index(node, index.const_value.numpy(), size))
    else:
        where = checked(importer, node, inputs[1], size)
    rank = len(index.shape)

    def taken(table, at):
        def value(*i):
            entry = at(*i[axis : axis + rank])
            return table(*i[:axis], entry, *i[axis + rank :])

        return te.compute([int(d) for d in node.outputs[0].shape], value, name="gather")

    return importer.bb.emit_te(taken, inputs[0], where, primfunc_name_hint="gather")


def constant_index(node: ir.Node, index: np.ndarray, size: int) -> np.ndarray:
    if index.size and not (-size <= index.min() and index.max() < size):
        raise CompileError(f"{node.op_type} '{node.name}': a constant index is outside [-{size}, {size})")
    return np.where(index < 0, index + size, index).astype(np.int32)


def checked(importer, node: ir.Node, index, size: int):
    shape = [int(d) for d in index.ty.shape]
    func = checked_index(tuple(shape), str(index.ty.dtype), size, f"{node.op_type} '{node.name}'")
    return importer.kernel("checked_index", func, [index], shape, "int32")


def slice_(importer, node: ir.Node, inputs):
    """``Slice`` with constant bounds, clamped as the ONNX operator's text says (Slice-13)."""
    bounds = [value.const_value for value in node.inputs[1:] if value is not None]
    if any(bound is None for bound in bounds):
        return None
    shape = [int(d) for d in node.inputs[0].shape]
    starts = node.inputs[1].const_value.numpy().reshape(-1)
    axes, steps = (
        node.inputs[i].const_value.numpy().reshape(-1) if len(node.inputs) > i and node.inputs[i] else default
        for i, default in ((3, range(len(starts))), (4, [1] * len(starts)))
    )
    first, stride = [0] * len(shape), [1] * len(shape)
    for start, axis, step in zip(starts, axes, steps, strict=True):
        at = int(axis) % len(shape)
        size, stride[at] = shape[at], int(step)
        begin = int(start) + size if start < 0 else int(start)
        first[at] = min(max(begin, 0), size if step > 0 else size - 1)
    target = [int(d) for d in node.outputs[0].shape]

    def sliced(x):
        def value(*i):
            return x(*(f + k * s for f, k, s in zip(first, i, stride, strict=True)))

        return te.compute(target, value, name="slice")

    return importer.bb.emit_te(sliced, inputs[0], primfunc_name_hint="slice")
