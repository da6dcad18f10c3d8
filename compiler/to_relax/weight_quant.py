"""Products with weights of 8 or 4 bits: packed here, activations rounded once for all that read them."""

import numpy as np
import onnx_ir as ir
from tvm import relax

from sparsec.compiler.to_relax.activations import reshaped
from sparsec.compiler.to_relax.linear import attribute, gemm_layer, record
from sparsec.passes.ops.weight_quant import dequantised
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.weight_quant import QuantGemm, scale_dtype, why_not

#: Input channels of a group that a coarser one is cut into: integers must hold the sums.
_FINE = 128


def matmul(importer, node: ir.Node, inputs):
    """The kernel of a ``WeightQuantMatMul``, or that of its weight as float32 where there is none."""
    q, scale, zero, index = _constants(node)
    found = spec_of(node, q, scale, zero, index, importer.choices.get(node.name) != "dense")
    if isinstance(found, str):
        spec, weight = gemm_layer(node, dequantised(q, scale, zero, index))
        arrays, operands, text = spec.pack(weight), [reshaped(importer, inputs[0], spec.x_shape)], "float32"
    else:
        spec, scale, zero = found
        arrays, operands = spec.pack(q, scale, zero), rounded(importer, inputs[0], spec)
        text = f"int{spec.bits} weights, groups of {spec.group}"
    packed = [importer.weight(array, node) for array in arrays]
    y = importer.kernel("gemm", spec.prim_func(), [*operands, *packed], list(spec.y_shape))
    record(importer, node, q, sum(array.nbytes for array in arrays), text)
    return y


def _constants(node: ir.Node) -> list[np.ndarray]:
    return [value.const_value.numpy() for value in node.inputs[1:]]


def why_not_sparse(node: ir.Node) -> str | None:
    """Why the kernel of a ``WeightQuantMatMul`` skips no zeros of its pattern, or None."""
    found = spec_of(node, *_constants(node), True)
    if isinstance(found, str):
        return found
    spec = found[0]
    return why_not(spec.bits, spec.group, _pattern(node), spec.zeros)


def why_not_narrow(node: ir.Node) -> str | None:
    """Why the weight of a ``WeightQuantMatMul`` becomes float32 again, or None."""
    found = spec_of(node, *_constants(node), False)
    return found if isinstance(found, str) else None


def _pattern(node: ir.Node) -> Pattern:
    return Pattern(*(attribute(node, name, 1) for name in ("n", "m", "block")))


def spec_of(node: ir.Node, q, scale, zero, index, sparse: bool):
    """``(spec, scales, zero points)`` of the node's kernel, or the reason why there is none."""
    k = q.shape[1]
    group = int(np.searchsorted(index, 1)) if index[-1] else k
    if not np.array_equal(index, np.arange(k) // group):
        return "its groups are not neighbouring input channels"
    fine = (
        next((size for size in range(_FINE, 0, -16) if group % size == 0), group) if group > _FINE else group
    )
    if group == k and group % 16:
        fine = min(_FINE, -(-k // 16) * 16)
    own = np.minimum(np.arange(-(-k // fine)) * fine // group, scale.shape[1] - 1)
    scale, zero = np.ascontiguousarray(scale[:, own]), np.ascontiguousarray(zero[:, own])
    pattern = _pattern(node) if sparse else DENSE
    bits, zeros = attribute(node, "bits", 8), bool(zero.any())
    if why_not(bits, fine, pattern, zeros):
        pattern = DENSE
    if reason := why_not(bits, fine, pattern, zeros):
        return reason
    lead = tuple(int(d) for d in node.outputs[0].shape)[:-1]
    return QuantGemm(lead, k, q.shape[0], bits, fine, pattern, scale_dtype(scale), zeros), scale, zero


def rounded(importer, x, spec: QuantGemm) -> list:
    """``x`` as ``group_activations`` has it, computed once."""
    key = (x, spec.groups)
    if key not in importer.rounded:
        shapes, dtypes = zip(*spec.groups.args(), strict=True)
        flat = reshaped(importer, x, spec.x_shape)
        both = importer.kernel(
            "group_activations", spec.groups.prim_func(), [flat], list(shapes), list(dtypes)
        )
        importer.rounded[key] = [importer.bb.emit(relax.TupleGetItem(both, i)) for i in range(2)]
    return importer.rounded[key]
