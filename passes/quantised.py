"""Reading a quantised graph: what QuantizeLinear and DequantizeLinear say of the values around them.

``real = (integer - zero) * scale``.  A model in QDQ form computes in floats between a DequantizeLinear in
front and a QuantizeLinear behind each operator; ``passes/integer.py`` finds the integers that it means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import attribute, const_array, is_op, producer

SIGNED = "sparsec.signed"
"""Key in the metadata of a QuantizeLinear or DequantizeLinear: its integers are int8 in the source model."""
BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


@dataclass(frozen=True)
class Quantised:
    """Integers that stand for reals, one scale for the whole tensor; ``signed``: int8 in the source model."""

    value: ir.Value
    scale: np.float32
    zero: int
    signed: bool

    @property
    def offset(self) -> int:
        """What the source model's integers lie below the ones stored."""
        return 128 if self.signed else 0

    def like(self, other: Quantised) -> bool:
        """Whether both mean the same real by the same integer."""
        return (self.scale, self.zero, self.value.dtype) == (other.scale, other.zero, other.value.dtype)


@dataclass(frozen=True)
class Weight:
    """A constant of integers; ``scale`` and ``zero`` have its rank, with size 1 where they are shared."""

    array: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    def transposed(self, perm) -> Weight:
        return Weight(*(np.transpose(a, perm) for a in (self.array, self.scale, self.zero)))

    @property
    def centred(self) -> np.ndarray:
        """The integers less their zero points, int32."""
        return self.array.astype(np.int32) - self.zero.astype(np.int32)

    @property
    def real(self) -> np.ndarray:
        """What the weight means, float32, rounded as DequantizeLinear rounds it."""
        return self.centred.astype(np.float32) * self.scale


def dequantised(value: ir.Value | None) -> Quantised | None:
    """What ``value`` is made from, if a DequantizeLinear with one constant scale makes it."""
    node = producer(value, "DequantizeLinear")
    return None if node is None else _parameters(node, node.inputs[0])


def quantiser(node: ir.Node | None) -> Quantised | None:
    """What ``node`` makes, if it is a QuantizeLinear to 8 bits with one constant scale."""
    return _parameters(node, node.outputs[0]) if is_op(node, "QuantizeLinear") else None


def _parameters(node: ir.Node, integers: ir.Value) -> Quantised | None:
    scale = const_array(node.inputs[1])
    zero = const_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and zero is None:
        return None
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or (zero is not None and zero.size != 1):
        return None
    if integers.dtype is None or integers.dtype.numpy() not in BYTES:
        return None
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return None
    return Quantised(
        integers,
        np.float32(scale.reshape(())),
        0 if zero is None else int(zero.reshape(())),
        SIGNED in node.metadata_props,
    )


def constant_weight(value: ir.Value | None) -> Weight | None:
    """The constant integers behind ``value``: DequantizeLinear of a constant, perhaps transposed."""
    node = producer(value, "DequantizeLinear", "Transpose", "Identity")
    if node is None:
        return None
    if node.op_type != "DequantizeLinear":
        inner = constant_weight(node.inputs[0])
        if inner is None or node.op_type == "Identity":
            return inner
        return inner.transposed(attribute(node, "perm"))
    array, scale = const_array(node.inputs[0]), const_array(node.inputs[1])
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = const_array(node.inputs[2]) if given else np.zeros((), np.int32)
    if array is None or scale is None or zero is None or scale.dtype != np.float32:
        return None
    if array.dtype.kind not in "iu" or array.dtype.itemsize not in (1, 2, 4):
        return None
    if scale.size == 1 and zero.size == 1:
        shape = (1,) * array.ndim
    else:
        axis = attribute(node, "axis", 1) % max(array.ndim, 1)
        if scale.ndim != 1 or scale.size != array.shape[axis] or zero.size not in (1, scale.size):
            return None  # scales by blocks
        shape = tuple(scale.size if i == axis else 1 for i in range(array.ndim))
        zero = np.broadcast_to(zero.reshape(-1), scale.shape)
    return Weight(array, scale.reshape(shape), zero.reshape(shape))


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, once, where nothing else does and no output is named so."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


@dataclass(frozen=True)
class Tail:
    """What stands between a value and the integers it becomes: Relu and Clip at most.

    ``least`` and ``most`` are the smallest and largest of the integers that those let through.
    """

    quantised: Quantised
    least: int
    most: int
    ops: tuple[str, ...]


def tail(value: ir.Value) -> Tail | None:
    """The one way of ``value`` into a QuantizeLinear; None where it has another reader or goes elsewhere."""
    low, high, ops = -np.inf, np.inf, []
    while (node := sole_reader(value)) is not None:
        made = quantiser(node)
        if made is not None:
            limits = np.iinfo(made.value.dtype.numpy())
            least, most = (_code(bound, made, limits) for bound in (low, high))
            return Tail(made, least, most, (*ops, node.op_type))
        bounds = _bounds(node)
        if bounds is None:
            return None
        low, high = (min(max(bound, bounds[0]), bounds[1]) for bound in (low, high))
        ops.append(node.op_type)
        value = node.outputs[0]
    return None


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    if is_op(node, "Relu"):
        return 0.0, np.inf
    if not is_op(node, "Clip"):
        return None
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = default if value is None else const_array(value)
        if array is None or np.size(array) != 1:
            return None
        bounds.append(float(np.reshape(array, ())))
    return (bounds[0], bounds[1]) if bounds[0] <= bounds[1] else None


def _code(bound: float, made: Quantised, limits) -> int:
    """The integer that QuantizeLinear makes of ``bound``."""
    with np.errstate(over="ignore"):
        code = np.rint(np.float32(bound) / made.scale) + made.zero
    return int(np.clip(code, limits.min, limits.max))


def unsigned(quantised: Quantised, value: ir.Value) -> Quantised:
    """``quantised`` int8 as ``value``, uint8."""
    return replace(quantised, value=value, zero=quantised.zero + 128, signed=True)
