"""Where a tensor lies that is only another view of one in memory: transposed, split, sliced, broadcast.

NumPy is asked what a chain of such operators does: it is applied to an array of the source's shape, of which
nothing is ever touched, and offset and strides are read off.  A reshape that cannot be had without a copy
ends the chain.
"""

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from sparsec.schedules.attention import Strided


@dataclass(frozen=True)
class View:
    """``factor`` times a view of ``source``, which lies in memory in its own order."""

    source: ir.Value
    base: np.ndarray
    array: np.ndarray
    factor: float = 1.0

    def placed(self) -> Strided:
        address = self.array.__array_interface__["data"][0] - self.base.__array_interface__["data"][0]
        size, dtype = prod(shape_of(self.source)), str(self.source.dtype.numpy())
        return Strided(size, address, self.array.strides, dtype)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    return tuple(int(d) for d in value.shape)


def itself(value: ir.Value) -> View:
    # One byte an element: strides in bytes are strides in elements.
    base = np.empty(shape_of(value), np.int8)
    return View(value, base, base)


def broadcast(found: View, shape: tuple[int, ...]) -> View:
    return replace(found, array=np.broadcast_to(found.array, shape))


def view(value: ir.Value, scaled: bool = False) -> View:
    """``value`` as a view of what has to be in memory; with ``scaled``, also through a constant factor."""
    node = value.producer()
    if node is None or node.domain:
        return itself(value)
    if scaled and node.op_type in ("Mul", "Div") and value.dtype == ir.DataType.FLOAT:
        return _scaled(value, node)
    step = STEPS.get(node.op_type)
    if step is None or shape_of(node.inputs[0]) == () or 0 in shape_of(node.inputs[0]):
        return itself(value)
    before = view(node.inputs[0], scaled)
    try:
        array = step(node, before.array, value)
    except _Copies:
        return itself(value)
    return replace(before, array=array)


def _scaled(value: ir.Value, node: ir.Node) -> View:
    a, b = node.inputs
    if node.op_type == "Mul" and a.const_value is not None:
        a, b = b, a
    factor = scalar(b)
    # Only what cannot turn a finite product into another kind of number.
    if factor is None or not 1e-3 <= abs(factor) <= 1e3 or shape_of(a) != shape_of(value):
        return itself(value)
    before = view(a, True)
    factor = before.factor * factor if node.op_type == "Mul" else before.factor / factor
    return replace(before, factor=factor)


def scalar(value: ir.Value) -> float | None:
    """The one element of a floating-point constant."""
    if value.const_value is None or value.dtype != ir.DataType.FLOAT or prod(shape_of(value)) != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


class _Copies(Exception):
    """The result is no view."""


def _constant(node: ir.Node, index: int) -> list[int] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    if value.const_value is None:
        raise _Copies
    return value.const_value.numpy().reshape(-1).tolist()


def _reshape(node, array, out):
    try:
        return array.reshape(shape_of(out), copy=False)
    except ValueError:
        raise _Copies from None


def _transpose(node, array, out):
    return array.transpose(node.attributes["perm"].as_ints() if "perm" in node.attributes else None)


def _expand(node, array, out):
    return np.broadcast_to(array, shape_of(out))


def _split(node, array, out):
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    ends = np.cumsum([shape_of(o)[axis] for o in node.outputs]).tolist()
    which = next(i for i, o in enumerate(node.outputs) if o is out)
    return np.moveaxis(np.moveaxis(array, axis, 0)[ends[which] - shape_of(out)[axis] : ends[which]], 0, axis)


def _slice(node, array, out):
    starts, ends, axes, steps = (_constant(node, i) for i in range(1, 5))
    if 0 in shape_of(out):
        raise _Copies
    at = [slice(None)] * array.ndim
    steps = steps or [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        if step < 1:
            raise _Copies
        at[axis] = slice(start, end, step)
    return array[tuple(at)]


def _gather(node, array, out):
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    indices = _constant(node, 1)
    if len(indices) != 1 or not -array.shape[axis] <= indices[0] < array.shape[axis]:
        raise _Copies
    index = indices[0] % array.shape[axis]
    picked = array[(slice(None),) * (axis % array.ndim) + (slice(index, index + 1),)]
    return _reshape(node, picked, out)


#: ``step(node, array, output)``: the view that the node makes of ``array``; raises _Copies where it is none.
STEPS = {
    "Identity": lambda node, array, out: array,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Expand": _expand,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}
