"""MatMul of two activations, as attention has it."""

from math import prod

import onnx_ir as ir
from tvm import relax

from sparsec.schedules.batch_matmul import BatchMatmul


def matmul(importer, node: ir.Node, inputs):
    """One batched kernel where both operands have the same leading dims; broadcasting is TVM's."""
    a, b = ([int(d) for d in value.shape] for value in node.inputs)
    if node.inputs[0].dtype != ir.DataType.FLOAT or len(a) < 2 or len(b) < 2:
        return None
    width = max(len(a), len(b))
    lead_a, lead_b = ([1] * (width - len(s)) + s[:-2] for s in (a, b))
    if lead_a != lead_b:
        if prod(lead_b) != 1:
            return None
        lead_a, lead_b, a = [], [], [prod(a[:-1]), a[-1]]  # one matrix for all: its rows are one batch
    spec = BatchMatmul(prod(lead_a), a[-2], a[-1], b[-1], False)
    x = importer.bb.emit(relax.op.reshape(inputs[0], spec.a_shape))
    y = importer.bb.emit(relax.op.reshape(inputs[1], spec.b_shape))
    product = importer.kernel("batch_matmul", spec.prim_func(), [x, y], list(spec.y_shape))
    return relax.op.reshape(product, [int(d) for d in node.outputs[0].shape])
