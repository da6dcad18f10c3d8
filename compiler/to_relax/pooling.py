"""Pools over channels-last images; a one-dimensional signal is an image of height 1."""

import onnx_ir as ir
from tvm import relax

from sparsec.compiler.to_relax.linear import attribute, four, reshaped, spatial_shape, two


def max_pool(importer, node: ir.Node, inputs):
    return pool(importer, node, inputs[0], relax.op.nn.max_pool2d, two(node, "dilations", 1))


def average_pool(importer, node: ir.Node, inputs):
    include = bool(attribute(node, "count_include_pad", 0))
    dilations = two(node, "dilations", 1)
    return pool(importer, node, inputs[0], relax.op.nn.avg_pool2d, dilations, count_include_pad=include)


def pool(importer, node: ir.Node, x, op, dilations, **options):
    x = reshaped(importer, x, spatial_shape(node.inputs[0]))
    y = op(
        x,
        pool_size=two(node, "kernel_shape", 1),
        strides=two(node, "strides", 1),
        padding=four(node),
        dilation=dilations,
        ceil_mode=bool(attribute(node, "ceil_mode", 0)),
        layout="NHWC",
        **options,
    )
    return reshaped(importer, importer.bb.emit(y), [int(d) for d in node.outputs[0].shape])
