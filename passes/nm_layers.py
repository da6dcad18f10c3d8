"""The layers that can have an N:M pattern: MatMul, Gemm, Conv and ConvTranspose with a constant weight, and
MatMulInteger and ConvInteger with one of int8.

Each is seen in one canonical form, `[out, taps, in]`, whatever the operator's own layout and whether the
constant is an initializer, a Constant node, or made of such by Identity, Transpose, Reshape, Cast, or by a
Mul with a mask as torch.nn.utils.prune leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import (
    FLOATS,
    add_constant,
    attribute,
    const_array,
    is_op,
    nodes,
    producer,
    replace_with_op,
)
from sparsec.passes.nm_pattern import NM, Scattered
from sparsec.passes.ops import DOMAIN

_STANDARD = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_SPARSE = tuple(f"NM{name}" for name in _STANDARD)
_INTEGER = ("MatMulInteger", "ConvInteger")
_SPARSE_INTEGER = tuple(f"NM{name}" for name in _INTEGER)


@dataclass(frozen=True, eq=False)
class Layer:
    """One node with a constant weight.

    `value` is the node's input, `array` what it holds, in the operator's layout. `weight` is `array` as
    `[out, taps, in]`, a view where possible; `groups` that of a grouped convolution. `refusal` says why no
    N:M operator can stand here, whatever the zeros (None: it can).
    """

    node: ir.Node
    standard: str
    value: ir.Value
    array: np.ndarray
    weight: np.ndarray
    groups: int
    refusal: str | None

    @property
    def before(self) -> str:
        """What stands there now, as a finding spells it."""
        return f"{DOMAIN}.{self.node.op_type}" if self.node.domain == DOMAIN else self.node.op_type

    @property
    def op(self) -> str:
        """The N:M operator that can stand there, in domain ai.sparsec."""
        return f"NM{self.standard}"

    @property
    def after(self) -> str:
        """The same as a finding spells it."""
        return f"{DOMAIN}.{self.op}"

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for layers that read the same weight in the same way."""
        return (self.value, self.weight.shape, self.weight.strides, self.groups)

    @property
    def convolves(self) -> bool:
        """Whether channels are axis 1 of input and output, and spatial axes follow."""
        return self.standard in ("Conv", "ConvTranspose", "ConvInteger")

    @property
    def multiply_adds(self) -> int:
        """Those of one run with the dense weight; the shapes must be known."""
        if self.standard == "ConvTranspose":  # each input meets every tap
            return math.prod(self.node.inputs[0].shape) * math.prod(self.array.shape[1:])
        return math.prod(self.node.outputs[0].shape) * math.prod(self.weight.shape[1:])

    def stored(self, weight: np.ndarray) -> np.ndarray:
        """A canonical weight in the operator's layout and dtype: back from `weight` to `array`."""
        if self.standard == "ConvTranspose":
            out, taps, k = weight.shape
            by_group = weight.reshape(self.groups, -1, taps, k).transpose(0, 3, 1, 2)
            array = by_group.reshape(self.groups * k, out // self.groups, *self.array.shape[2:])
        elif self.standard == "Conv":
            out, _, k = weight.shape
            array = np.moveaxis(weight.reshape(out, *self.array.shape[2:], k), -1, 1)
        else:
            array = weight[:, 0, :] if _rows_are_channels(self.node) else weight[:, 0, :].T
        return np.ascontiguousarray(array, dtype=self.array.dtype)


def find_layers(model: ir.Model) -> Iterator[Layer]:
    """Every layer (or N:M form of one) with a constant float weight, in graph order."""
    cache: dict[ir.Value, np.ndarray | None] = {}
    for node in nodes(model):
        if is_op(node, *_STANDARD) or is_op(node, *_SPARSE, domain=DOMAIN):
            layer = _layer(node, cache)
            if layer is not None:
                yield layer


def find_integers(model: ir.Model) -> Iterator[Layer]:
    """Every layer (or N:M form of one) with a constant int8 weight without zero points, in graph order."""
    cache: dict[ir.Value, np.ndarray | None] = {}
    for node in nodes(model):
        if is_op(node, *_INTEGER) or is_op(node, *_SPARSE_INTEGER, domain=DOMAIN):
            array = _constant(node.inputs[1], cache)
            if array is None or array.dtype != np.int8 or len(node.inputs) > 3 or array.size == 0:
                continue
            standard, value = node.op_type.removeprefix("NM"), node.inputs[1]
            wide = array.astype(np.int32)  # squares and sums of int8 leave it
            if standard == "MatMulInteger" and array.ndim == 2:
                yield Layer(node, standard, value, array, wide.T[:, None, :], 1, None)
            elif standard == "ConvInteger" and 3 <= array.ndim <= 4:
                weight = np.moveaxis(wide, 1, -1).reshape(array.shape[0], -1, array.shape[1])
                yield Layer(node, standard, value, array, weight, attribute(node, "group", 1), None)


def find_unserved(model: ir.Model) -> Iterator[Layer]:
    """Weights of operators that have no N:M form, so that a pattern in them is told and not passed over.

    The two matrices `[directions, gates * hidden, in]` of RNN, GRU and LSTM are each a layer of its own. In
    MatMulInteger what is equal to the zero point counts as zero.
    """
    cache: dict[ir.Value, np.ndarray | None] = {}
    for node in nodes(model):
        if is_op(node, "MatMulInteger") and len(node.inputs) > 3:
            array, zero = (_constant(v, cache) for v in (*node.inputs, None, None)[1:4:2])
            if array is not None and array.ndim == 2:
                array = array.astype(np.int32) - (0 if zero is None else zero)
                refusal = "no N:M kernel computes MatMulInteger, so it runs dense"
                yield Layer(node, node.op_type, node.inputs[1], array, array.T[:, None, :], 1, refusal)
        if is_op(node, "RNN", "GRU", "LSTM"):
            refusal = f"no N:M kernel computes {node.op_type}, so it runs dense"
            for value in node.inputs[1:3]:
                if (array := _constant(value, cache)) is not None and array.ndim == 3:
                    weight = array.reshape(-1, 1, array.shape[2])
                    yield Layer(node, node.op_type, value, array, weight, 1, refusal)


def origin(value: ir.Value) -> ir.Value:
    """The initializer, or output of a Constant node, that a layer's `value` is made from."""
    while (node := value.producer()) is not None and node.inputs:
        value = node.inputs[0]
    return value


def put(model: ir.Model, layer: Layer, nm: NM | Scattered, weight: ir.Value) -> None:
    """Put the N:M operator where `layer`'s node stands, reading `weight`; its attributes and name stay."""
    old = layer.node
    attributes = {k: ir.Attr(k, a.type, a.value) for k, a in old.attributes.items()}
    attributes |= {k: ir.AttrInt64(k, getattr(nm, k)) for k in ("n", "m", "block")}
    attributes.pop("scattered", None)
    if isinstance(nm, Scattered):
        attributes["scattered"] = ir.AttrInt64("scattered", 1)
    replace_with_op(model, old, layer.op, [old.inputs[0], weight, *old.inputs[2:]], attributes)


def as_initializer(model: ir.Model, layer: Layer, made: dict[ir.Value, ir.Value]) -> ir.Value:
    """The weight as a plain initializer; one that has to be made is made once for all that read it."""
    if layer.value.is_initializer():
        return layer.value
    if layer.value not in made:
        made[layer.value] = add_constant(
            model, f"{layer.value.name}_folded", np.ascontiguousarray(layer.array)
        )
    return made[layer.value]


def _layer(node: ir.Node, cache: dict[ir.Value, np.ndarray | None]) -> Layer | None:
    standard = node.op_type.removeprefix("NM")
    if len(node.inputs) < 2:
        return None
    convolves = standard in ("Conv", "ConvTranspose")
    right, left = _constant(node.inputs[1], cache), None
    if right is None and not convolves:
        left = _constant(node.inputs[0], cache)
    array = left if right is None else right
    if array is None or array.size == 0 or ir.DataType.from_numpy(array.dtype) not in FLOATS:
        return None
    value = node.inputs[0 if right is None else 1]
    groups, refusal = attribute(node, "group", 1), _unserved_form(node, array)
    if convolves:
        if array.ndim < 3 or array.shape[0] % groups:
            return None
        weight = np.moveaxis(array, 1, -1).reshape(array.shape[0], -1, array.shape[1])
        if standard == "ConvTranspose":  # [in, taps, out / groups]
            by_group = weight.reshape(groups, -1, *weight.shape[1:]).transpose(0, 3, 2, 1)
            weight = by_group.reshape(groups * array.shape[1], -1, by_group.shape[-1])
    elif right is None:
        rows = array.T if standard == "Gemm" and attribute(node, "transA", 0) else array
        weight = rows.reshape(-1, 1, rows.shape[-1])
        refusal = "the constant is the left operand; N:M kernels read a constant on the right"
    elif array.ndim == 2:
        weight = (array if _rows_are_channels(node) else array.T)[:, None, :]
    else:
        columns = array.reshape(-1, 1) if array.ndim == 1 else array
        weight = np.moveaxis(columns, -2, -1).reshape(-1, 1, columns.shape[-2])
        refusal = f"the constant has rank {array.ndim}; N:M kernels read a matrix of rank 2"
    return Layer(node, standard, value, array, weight, groups, refusal)


def _unserved_form(node: ir.Node, array: np.ndarray) -> str | None:
    """What of `node`, its weight being on the right and of a fit rank, no N:M kernel computes."""
    if array.dtype != np.float32:
        return f"N:M kernels compute in float32, this layer in {array.dtype}; convert the model to float32"
    if node.op_type.removeprefix("NM") in ("Conv", "ConvTranspose"):
        axes = array.ndim - 2
        return f"N:M kernels convolve along 1 or 2 axes, this layer along {axes}" if axes > 2 else None
    if node.inputs[0].shape is not None and len(node.inputs[0].shape) < 2:
        return "the input is a single vector; N:M kernels take rows: give it a batch axis"
    return None


def _rows_are_channels(node: ir.Node) -> bool:
    return bool(attribute(node, "transB", 0))


def _constant(value: ir.Value | None, cache: dict[ir.Value, np.ndarray | None]) -> np.ndarray | None:
    if value is None:
        return None
    if value not in cache:
        cache[value] = _evaluate(value, cache)
    return cache[value]


def _evaluate(value: ir.Value, cache: dict[ir.Value, np.ndarray | None]) -> np.ndarray | None:
    array = const_array(value)
    if array is not None:
        return array
    node = producer(value, "Identity", "Transpose", "Reshape", "Cast", "Mul")
    source = _constant(node.inputs[0], cache) if node is not None else None
    if source is None or node.op_type == "Identity":
        return source
    if node.op_type == "Mul":
        factor = _constant(node.inputs[1], cache)
        return None if factor is None else source * factor
    if node.op_type == "Transpose":
        return np.transpose(source, attribute(node, "perm"))
    if node.op_type == "Cast":
        return source.astype(ir.DataType(attribute(node, "to")).numpy())
    shape = _constant(node.inputs[1], cache)
    if shape is None:
        return None
    sizes = [int(d) for d in shape]
    if not attribute(node, "allowzero", 0):
        sizes = [source.shape[i] if d == 0 else d for i, d in enumerate(sizes)]
    return source.reshape(sizes)
