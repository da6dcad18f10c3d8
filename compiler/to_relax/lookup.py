"""Lookups with checked indices, and Slice."""

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
        where = checked(importer, node, inputs[1], (size,))
    rank = len(index.shape)

    def taken(table, at):
        def value(*i):
            entry = at(*i[axis : axis + rank])
            return table(*i[:axis], entry, *i[axis + rank :])

        return te.compute([int(d) for d in node.outputs[0].shape], value, name="gather")

    return importer.bb.emit_te(taken, inputs[0], where, primfunc_name_hint="gather")


def elements(importer, node: ir.Node, inputs):
    """GatherElements and ScatterElements: TVM's own, on checked indices."""
    axis = attribute(node, "axis", 0) % len(node.inputs[0].shape)
    inputs[1] = safe_index(importer, node, inputs[1], (int(node.inputs[0].shape[axis]),))


def coordinates(importer, node: ir.Node, inputs):
    """GatherND and ScatterND: TVM's own, on checked coordinates."""
    first = attribute(node, "batch_dims", 0)
    count = int(node.inputs[1].shape[-1])
    sizes = tuple(int(d) for d in node.inputs[0].shape[first : first + count])
    inputs[1] = safe_index(importer, node, inputs[1], sizes)


def batch_index(importer, node: ir.Node, inputs):
    """RoiAlign: TVM's own, on checked indices of the images."""
    inputs[2] = safe_index(importer, node, inputs[2], (int(node.inputs[0].shape[0]),), position=2)


def safe_index(importer, node: ir.Node, index, sizes: tuple[int, ...], position: int = 1):
    """The node's indices, none of them negative: checked now where they are constant, else at run time."""
    constant = node.inputs[position].const_value
    if constant is None:
        return checked(importer, node, index, sizes)
    array, limit = constant.numpy(), np.array(sizes if len(sizes) > 1 else sizes[0])
    return relax.const(wrapped(node, array, limit), str(array.dtype))


def constant_index(node: ir.Node, index: np.ndarray, size: int) -> np.ndarray:
    return wrapped(node, index, np.array(size)).astype(np.int32)


def wrapped(node: ir.Node, index: np.ndarray, size: np.ndarray) -> np.ndarray:
    if index.size and not np.all((index >= -size) & (index < size)):
        limits = ", ".join(f"[-{s}, {s})" for s in np.unique(size))
        raise CompileError(f"{node.op_type} '{node.name}': a constant index is outside {limits}")
    return np.where(index < 0, index + size, index).astype(index.dtype)


def checked(importer, node: ir.Node, index, sizes: tuple[int, ...]):
    shape, dtype = [int(d) for d in index.ty.shape], str(index.ty.dtype)
    func = checked_index(tuple(shape), dtype, sizes, f"{node.op_type} '{node.name}'")
    return importer.kernel("checked_index", func, [index], shape, dtype)


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
