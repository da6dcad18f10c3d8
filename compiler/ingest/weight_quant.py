"""Weights that a model brings as small integers, with float activations: kept as they are.

    MatMul(x, DequantizeLinear(Q, S, Z))    ->  WeightQuantMatMul(x, Q', S', Z', I)
    Gemm(x, DequantizeLinear(Q, S, Z), C)   ->  Add(WeightQuantMatMul(...), C)
    com.microsoft.MatMulNBits(x, Q, S, Z)   ->  WeightQuantMatMul(...), Add

with constants of 8 or 4 bits and scales for all, for each output channel, or for blocks of input channels.
Unsigned integers and their zero points become signed ones.  Before the model's opset is converted: older ones
have neither blocks nor types of 4 bits.  What is not of this form is folded to floats, and so are weights
with many zeros, whose patterns the recognisers of float layers find.
"""

import numpy as np
import onnx_ir as ir

from sparsec.compiler.ingest import OPSET, edit
from sparsec.compiler.ingest.inference import infer
from sparsec.passes.graph import remove_dead
from sparsec.passes.ops import DOMAIN, OPS, VERSION
from sparsec.passes.ops.weight_quant import NAME

#: Type of Q -> bits, and what makes its values signed.
_TYPES = {
    ir.DataType.INT8: (8, 0),
    ir.DataType.UINT8: (8, 128),
    ir.DataType.INT4: (4, 0),
    ir.DataType.UINT4: (4, 8),
}
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Split")
#: Fewer weights are folded: reading them takes no time.
_MIN_SIZE = 4096
#: Share of zeros from which on a weight may have a pattern; rounding to 4 bits makes up to a fifth.
_MANY_ZEROS = 0.3


def keep(model: ir.Model) -> list[str]:
    """Puts the products of ``model`` in their place; the operators that had dequantised them, each once."""
    found = []
    if not any(node.op_type in ("DequantizeLinear", "MatMulNBits") for node in model.graph):
        return found
    infer(model)
    for node in list(model.graph):
        if node.domain == "com.microsoft" and node.op_type == "MatMulNBits":
            made = _nbits(node)
        elif not node.domain and node.op_type in ("MatMul", "Gemm"):
            made = _dequantised(node)
        else:
            continue
        x = node.inputs[0]
        if made is not None and _worth(*made[:4]) and (x.shape is None or len(x.shape) > 1):
            found.append("MatMulNBits" if node.domain else "DequantizeLinear")
            _put(model, node, *made)
    return sorted(set(found))


def _worth(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, size: int) -> bool:
    """Whether a weight is large enough, and dense."""
    if values.size < _MIN_SIZE:
        return False
    zeros = values == zero[:, np.arange(values.shape[1]) // size]
    return zeros.mean() < _MANY_ZEROS


def _dequantised(node: ir.Node):
    """``(values [n, k], scale, zero [n, groups], group, bits, added)`` of a MatMul or Gemm, or None."""
    gemm = node.op_type == "Gemm"
    if gemm and (
        edit.integer(node, "transA", 0)
        or any(node.attributes[n].as_float() != 1.0 for n in ("alpha", "beta") if n in node.attributes)
    ):
        return None
    source, transposed = node.inputs[1].producer(), bool(gemm and edit.integer(node, "transB", 0))
    if source is not None and source.op_type == "Transpose" and not source.domain:
        source, transposed = source.inputs[0].producer(), not transposed
    if source is None or source.domain or source.op_type != "DequantizeLinear" or _quantised(node.inputs[0]):
        return None
    q, scale, zero = ([*source.inputs, None] + [None])[:3]
    constants = [edit.constant(v) for v in (q, scale, zero)]
    if constants[0] is None or constants[1] is None or (zero is not None and constants[2] is None):
        return None
    if q.dtype not in _TYPES or scale.dtype != ir.DataType.FLOAT or constants[0].ndim != 2:
        return None
    values, scale, zero = constants
    bits, offset = _TYPES[q.dtype]
    zero = (np.zeros(scale.shape) if zero is None else zero).astype(np.int16) - offset
    axis, size = edit.integer(source, "axis", 1) % 2, edit.integer(source, "block_size", 0)
    if size == 0:  # of the tensor, or of each slice along axis
        spread = [1, 1]
        spread[axis] = -1
        scale, zero = (array.reshape(spread if array.size > 1 else (1, 1)) for array in (scale, zero))
        if not transposed and scale.shape[0] > 1 or transposed and scale.shape[1] > 1:
            return None  # a scale for each input channel: no groups
        size = values.shape[0 if not transposed else 1]
    elif axis != (1 if transposed else 0):
        return None
    values = values.astype(np.int16) - offset
    if not transposed:
        values, scale, zero = values.T, scale.T, zero.T
    shape = (values.shape[0], -(-values.shape[1] // size))
    scale, zero = np.broadcast_to(scale, shape), np.broadcast_to(zero, shape)
    added = node.inputs[2] if gemm and len(node.inputs) > 2 else None
    return values, scale, zero, size, bits, added


def _nbits(node: ir.Node):
    """The same of a MatMulNBits."""
    bits, size = edit.integer(node, "bits", 4), edit.integer(node, "block_size", 0)
    n, k = edit.integer(node, "N", 0), edit.integer(node, "K", 0)
    given = [*node.inputs, *[None] * 6][:6]
    q, scale, zero = (edit.constant(value) for value in given[1:4])
    if bits not in (4, 8) or q is None or scale is None or scale.dtype != np.float32 or given[4] is not None:
        return None
    if given[3] is not None and (zero is None or zero.dtype != np.uint8):
        return None
    count, offset = -(-k // size), 1 << bits - 1
    values = _unpacked(q.reshape(n, count, -1), bits).reshape(n, -1)[:, :k]
    scale = scale.reshape(n, count)
    if zero is None:
        zeros = np.zeros((n, count), np.int16)
    else:
        zeros = _unpacked(zero.reshape(n, -1), bits)[:, :count] - offset
    return values - offset, scale, zeros, size, bits, given[5]


def _unpacked(array: np.ndarray, bits: int) -> np.ndarray:
    """int16 of bytes that hold one value, or two with the first in the lower bits."""
    if bits == 8:
        return array.astype(np.int16)
    return np.stack([array & 15, array >> 4], -1).reshape(*array.shape[:-1], -1).astype(np.int16)


def _quantised(value: ir.Value) -> bool:
    """Whether ``value`` is dequantised as well: then the layer is one of integers."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _put(model: ir.Model, node: ir.Node, values, scale, zero, size: int, bits: int, added) -> None:
    (x, weight), graph = node.inputs[:2], model.graph
    arrays = {
        "q": values.astype(np.int8),
        "scale": np.ascontiguousarray(scale, np.float32),
        "zero": np.ascontiguousarray(zero).astype(np.int8),
        "group": np.arange(values.shape[1]) // size,
    }
    inputs = [edit.initializer(graph, f"{node.name or node.op_type}/{n}", a) for n, a in arrays.items()]
    function = OPS[NAME].body(OPSET)
    model.functions.setdefault(function.identifier(), function)
    graph.opset_imports.setdefault(DOMAIN, VERSION)
    product = edit.node_before(node, NAME, [x, *inputs], {"bits": bits}, domain=DOMAIN).outputs[0]
    product.dtype = ir.DataType.FLOAT
    if x.shape is not None:
        product.shape = ir.Shape([*x.shape[:-1], values.shape[0]])
    if added is not None:
        product = edit.node_before(node, "Add", [product, added]).outputs[0]
    edit.replace(node, [product])
    remove_dead([weight])
