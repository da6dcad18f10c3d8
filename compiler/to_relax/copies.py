"""Concat: every input is read where it lies and copied once."""

from math import prod

import onnx_ir as ir
from tvm import relax

from sparsec.compiler.to_relax.linear import attribute
from sparsec.compiler.to_relax.views import shape_of, view
from sparsec.schedules import concat as kernel


def concat(importer, node: ir.Node, inputs):
    shape = shape_of(node.outputs[0])
    if node.outputs[0].dtype == ir.DataType.STRING or not shape or 0 in shape:
        return None
    views = [view(value) for value in node.inputs]
    shapes = [shape_of(value) for value in node.inputs]
    func = kernel.concat([v.placed() for v in views], shapes, attribute(node, "axis", 0) % len(shape))
    args = [
        importer.bb.emit(relax.op.reshape(importer.expression(v.source), [prod(shape_of(v.source))]))
        for v in views
    ]
    dtype = views[0].placed().dtype
    flat = importer.kernel("concat", func, args, [prod(shape)], dtype)
    return relax.op.reshape(flat, list(shape))
