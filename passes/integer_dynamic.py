"""MatMulInteger and ConvInteger as they stand in a model, as dynamic quantisation writes them.

Their input gets its zero point when the model runs; the weight becomes int8 without one, in two parts where
it is beyond int8, and an int8 input becomes uint8.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.findings import Finding
from sparsec.passes.graph import const_array, is_op, node_name, remove_dead
from sparsec.passes.integer_layers import NAME, in_int8
from sparsec.passes.integer_moves import shifted
from sparsec.passes.writer import Writer, replace_value


def find(model: ir.Model) -> list[Finding]:
    findings = []
    for node in list(model.graph):
        if not is_op(node, "MatMulInteger", "ConvInteger"):
            continue
        refusal = _refusal(node)
        if refusal is not None:
            findings.append(Finding(NAME, node_name(node), "declined", refusal, node.op_type, node.op_type))
            continue
        parts = _rewrite(model, node)
        split = "" if parts == 1 else "; zero points beyond int8: two products"
        reason = f"int8 weights, 8-bit input{split}"
        findings.append(Finding(NAME, node_name(node), "applied", reason, node.op_type, node.op_type))
    return findings


def _refusal(node: ir.Node) -> str | None:
    weight = const_array(node.inputs[1])
    if weight is None:
        return "both operands are activations: it is computed in int32"
    if node.op_type == "MatMulInteger" and (weight.ndim != 2 or len(node.inputs[0].shape) < 2):
        return f"the weight has rank {weight.ndim}; integer layers take rows and a matrix"
    if node.op_type == "ConvInteger" and not 3 <= weight.ndim <= 4:
        return f"integer layers convolve along 1 or 2 axes, this one along {weight.ndim - 2}"
    if len(node.inputs) > 3 and node.inputs[3] is not None and const_array(node.inputs[3]) is None:
        return "the zero point of its weight is computed"
    if len(node.inputs) > 2 and node.inputs[2] is not None and np.prod(node.inputs[2].shape) != 1:
        return "its input has a zero point for each row"
    return None


def _rewrite(model: ir.Model, node: ir.Node) -> int:
    write, out = Writer(model, node), node.outputs[0]
    x, weight = node.inputs[0], const_array(node.inputs[1])
    x_zero = node.inputs[2] if len(node.inputs) > 2 else None
    zero = (
        const_array(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else np.zeros(())
    )
    if zero.size > 1 and node.op_type == "ConvInteger":
        zero = zero.reshape(-1, *[1] * (weight.ndim - 1))
    parts = in_int8(weight.astype(np.int32) - zero.astype(np.int32))
    if x.dtype == ir.DataType.INT8:
        x = shifted(write, x, ir.DataType.UINT8, 128)
        known = np.int8(0) if x_zero is None else const_array(x_zero)
        if known is None:
            x_zero = shifted(write, x_zero, ir.DataType.UINT8, 128)
        else:
            x_zero = write.constant((known.astype(np.int16) + 128).astype(np.uint8), "zero")
    if x_zero is None:
        x_zero = write.constant(np.uint8(0), "zero")
    name, made = node_name(node), []
    node.name = f"{name}~source"
    for part in parts:
        inputs = [x, write.constant(part, "weight"), x_zero]
        own = None if made else name
        made.append(write.op(node.op_type, inputs, out.dtype, out.shape, dict(node.attributes), name=own))
    total = made[0] if len(made) == 1 else write.op("Add", made, out.dtype, out.shape)
    replace_value(out, total)
    remove_dead([out])
    return len(parts)
