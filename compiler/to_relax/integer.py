"""Quantised models: MatMulInteger and ConvInteger with constant weights, and what stands between integers.

A layer is its kernel's plain sum of products, less the zero point of its input times the sum of each
channel's weights.  Where that zero point is a constant, this is one, too, and joins an int32 bias behind it.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from tvm import relax

from sparsec.compiler.to_relax import linear
from sparsec.compiler.to_relax.linear import attribute, reshaped
from sparsec.passes.graph import is_op
from sparsec.passes.quantised import sole_reader
from sparsec.schedules import contraction, tir
from sparsec.schedules import quantise as kernel
from sparsec.schedules.contraction_spec import kind_of
from sparsec.schedules.elements import INT8

LAYERS = ("MatMulInteger", "NMMatMulInteger", "ConvIntegerNHWC", "ConvIntegerNWC")


def is_layer(node: ir.Node) -> bool:
    """Whether ``node`` multiplies bytes by a constant of int8 without zero points."""
    if node.op_type not in LAYERS or node.inputs[0].dtype != ir.DataType.UINT8:
        return False
    weight = node.inputs[1].const_value
    if weight is None or weight.dtype != ir.DataType.INT8 or len(node.inputs) > 3:
        return False
    return "Conv" in node.op_type or (len(weight.shape) == 2 and len(node.inputs[0].shape) >= 2)


def layer(node: ir.Node):
    """``(spec, weight)`` of a node for which ``is_layer``."""
    if "Conv" in node.op_type:
        return linear.conv_layer(node, INT8.name, _zero(node) or 0)
    return linear.gemm_layer(node, node.inputs[1].const_value.numpy().T, INT8.name)


def convert(importer, node: ir.Node, inputs):
    """The int32 sums of a layer."""
    if not is_layer(node):
        return None
    spec, weight = layer(node)
    spec = linear.run_spec(node, contraction.packed_for(spec, importer.permute), importer.choices)
    arrays = spec.pack(weight.astype(np.float32))
    packed = [importer.weight(array, node) for array in arrays]
    x = reshaped(importer, inputs[0], spec.x_shape)
    name = type(spec).__name__.lower()
    y = importer.kernel(name, spec.prim_func(), [x, *packed], list(spec.y_shape), kind_of(spec).sums)
    linear.record(importer, node, weight, sum(array.nbytes for array in arrays), kind_of(spec).name)
    y = reshaped(importer, y, [int(d) for d in node.outputs[0].shape])
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return y
    zero = _zero(node)
    if zero is None:
        sums = _const(_covered(spec, weight) if any(getattr(spec, "pads", ())) else _by_channel(weight))
        wide = importer.bb.emit(relax.op.astype(inputs[2], "int32"))
        moved = importer.bb.emit(relax.op.multiply(sums, wide))
        return importer.bb.emit(relax.op.subtract(y, moved))
    if zero == 0:
        return y
    correction = -zero * _by_channel(weight)
    corrected = importer.bb.emit(relax.op.add(y, _const(correction)))
    importer.sums[corrected] = y, correction
    return corrected


def add(importer, node: ir.Node, inputs):
    """A bias behind a layer, in one addition with what the layer's zero point comes to."""
    bias = node.inputs[1].const_value
    if inputs[0] not in importer.sums or bias is None:
        return None
    y, correction = importer.sums[inputs[0]]
    return relax.op.add(y, _const(bias.numpy() + correction))


def multiply(importer, node: ir.Node, inputs):
    """The product of a dequantisation is rounded: nothing contracts it with a sum behind it."""
    if not any(_counts(value) for value in node.inputs):
        return None
    shape = [int(d) for d in node.outputs[0].shape]
    return importer.bb.emit_te(kernel.product, *inputs, shape, primfunc_name_hint="product")


def quantize_linear(importer, node: ir.Node, inputs):
    made = _grid(node, node.outputs[0].dtype)
    if made is None or node.inputs[0].dtype != ir.DataType.FLOAT:
        return None
    return _elementwise(importer, kernel.quantise, inputs[0], relax.const(made.array), *made.options)


def dynamic_quantize_linear(importer, node: ir.Node, inputs):
    emit, x = importer.bb.emit_te, inputs[0]
    if node.inputs[0].dtype != ir.DataType.FLOAT or 0 in [int(d) for d in node.inputs[0].shape]:
        return None
    low, high = (importer.bb.emit(extremum(x)) for extremum in (relax.op.min, relax.op.max))
    scale = emit(kernel.dynamic_scale, low, high, primfunc_name_hint="dynamic_scale")
    zero = emit(kernel.dynamic_zero, low, scale, primfunc_name_hint="dynamic_zero")
    codes = emit(kernel.dynamic_quantise, x, scale, zero, primfunc_name_hint="dynamic_quantise")
    return relax.Tuple([codes, scale, zero])


def dequantize_linear(importer, node: ir.Node, inputs):
    made = _grid(node, node.inputs[0].dtype)
    if made is None:
        return None
    before, alone = node.inputs[0].producer(), sole_reader(node.inputs[0]) is node
    given = _grid(before, made.dtype) if alone and is_op(before, "QuantizeLinear") else None
    if given is not None and given.zero == made.zero and before.inputs[0].dtype == ir.DataType.FLOAT:
        # Nobody needs the integers themselves.
        reals, grids = importer.expression(before.inputs[0]), [relax.const(g.array) for g in (given, made)]
        return _elementwise(importer, kernel.requantised, reals, *grids, *given.options)
    return _elementwise(importer, kernel.dequantise, inputs[0], relax.const(made.array))


def quantized_add(importer, node: ir.Node, inputs):
    shape = [int(d) for d in node.outputs[0].shape]
    factors = np.array([attribute(node, name, 0.0) for name in ("a", "b", "shift")], np.float32)
    offset = attribute(node, "offset", 0)
    return _elementwise(importer, kernel.add, *inputs[:2], relax.const(factors), shape, offset)


def clip(importer, node: ir.Node, inputs):
    """Bytes within constants; the rest is TVM's."""
    if node.inputs[0].dtype != ir.DataType.UINT8 or len(inputs) != 3:
        return None
    bounds = np.array([value.const_value.numpy().item() for value in node.inputs[1:]], np.uint8)
    return _elementwise(importer, kernel.clip, inputs[0], relax.const(bounds))


def _elementwise(importer, definition, *args):
    """A kernel of ``definition`` that fusion takes for one of single elements, whatever else it reads."""
    return importer.bb.emit_te(
        definition,
        *args,
        primfunc_name_hint=definition.__name__,
        primfunc_attrs={tir.ELEMENTWISE: True},
    )


@dataclass(frozen=True)
class _Grid:
    """Scale and zero point, one for all, of a QuantizeLinear or DequantizeLinear, and its integers."""

    scale: float
    zero: int
    dtype: ir.DataType

    @property
    def array(self) -> np.ndarray:
        return kernel.grid(self.scale, self.zero, str(self.dtype.numpy()))

    @property
    def options(self) -> tuple:
        """What ``kernel.quantise`` wants to know beside the grid."""
        return str(self.dtype.numpy()), self.scale == 1, not kernel.plain(self.scale)


def _grid(node: ir.Node, dtype: ir.DataType) -> _Grid | None:
    """What ``node`` says of ``dtype``, if that is constant and of bytes."""
    constants = [value.const_value for value in node.inputs[1:] if value is not None]
    if dtype not in (ir.DataType.UINT8, ir.DataType.INT8) or any(c is None for c in constants):
        return None
    arrays = [c.numpy() for c in constants]
    if any(array.size != 1 for array in arrays) or arrays[0].dtype != np.float32:
        return None
    return _Grid(float(arrays[0].item()), int(arrays[1].item()) if len(arrays) > 1 else 0, dtype)


def _counts(value: ir.Value) -> bool:
    """Whether ``value`` is an int32 as a float."""
    node = value.producer()
    return node is not None and node.op_type == "Cast" and node.inputs[0].dtype == ir.DataType.INT32


def _zero(node: ir.Node) -> int | None:
    """The zero point of the input; None where it is computed."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return 0
    return None if value.const_value is None else int(value.const_value.numpy().item())


def _by_channel(weight: np.ndarray) -> np.ndarray:
    """The sum of each output channel's weights, int32."""
    return weight.reshape(weight.shape[0], -1).sum(axis=1, dtype=np.int32)


def _covered(spec, weight: np.ndarray) -> np.ndarray:
    """The same for every pixel, without the taps that lie in the padding: ``[out_h, out_w, channels]``."""
    top, left, bottom, right = spec.pads
    inside = np.pad(np.ones((spec.in_h, spec.in_w), np.int32), ((top, bottom), (left, right)))
    taps = weight.sum(axis=3, dtype=np.int32)
    total = np.zeros((spec.out_h, spec.out_w, spec.out_c), np.int32)
    for p, q in np.ndindex(spec.k_h, spec.k_w):
        rows = slice(p * spec.dilations[0], None, spec.strides[0])
        columns = slice(q * spec.dilations[1], None, spec.strides[1])
        window = inside[rows, columns][: spec.out_h, : spec.out_w]
        total += window[:, :, None] * taps[:, p, q]
    return total


def _const(array: np.ndarray):
    return relax.const(np.ascontiguousarray(array, np.int32), "int32")
