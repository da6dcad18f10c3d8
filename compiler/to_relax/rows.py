"""Operators over the rows of an axis: softmax and its relatives, LayerNorm."""

import onnx_ir as ir

from sparsec.compiler.to_relax.linear import attribute
from sparsec.schedules import entmax as entmax_kernel
from sparsec.schedules import layer_norm as layer_norm_kernel
from sparsec.schedules import softmax as softmax_kernel
from sparsec.schedules import sparsemax as sparsemax_kernel


def softmax(importer, node: ir.Node, inputs):
    return over_axis(importer, node, inputs[0], softmax_kernel.softmax)


def log_softmax(importer, node: ir.Node, inputs):
    return over_axis(importer, node, inputs[0], softmax_kernel.log_softmax)


def sparsemax(importer, node: ir.Node, inputs):
    return over_axis(importer, node, inputs[0], sparsemax_kernel.sparsemax)


def entmax(importer, node: ir.Node, inputs):
    alpha = attribute(node, "alpha", 1.5)
    return over_axis(importer, node, inputs[0], lambda shape, axis: entmax_kernel.entmax(shape, alpha, axis))


def over_axis(importer, node: ir.Node, x, definition):
    shape = [int(d) for d in node.inputs[0].shape]
    if node.inputs[0].dtype != ir.DataType.FLOAT:
        return None
    axis = attribute(node, "axis", -1) % len(shape)
    return importer.kernel(node.op_type.lower(), definition(tuple(shape), axis), [x], shape)


def layer_normalization(importer, node: ir.Node, inputs):
    shape = [int(d) for d in node.inputs[0].shape]
    if node.inputs[0].dtype != ir.DataType.FLOAT or len(node.outputs) != 1:
        return None
    axis = attribute(node, "axis", -1) % len(shape)
    has_bias = len(inputs) > 2 and inputs[2] is not None
    half = importer.narrow.half if node.outputs[0] in importer.narrow.values else None
    func = layer_norm_kernel.layer_norm(tuple(shape), axis, attribute(node, "epsilon", 1e-5), has_bias, half)
    args = [value for value in inputs if value is not None]
    if half is None:
        return importer.kernel("layer_norm", func, args, shape)
    return importer.narrow.wide(importer.kernel("layer_norm", func, args, shape, "uint16"))
