"""The products that compute a layer with a constant weight: what is packed, timed and chosen for it."""

import onnx_ir as ir

from sparsec.compiler.to_relax import conv_transpose, integer, linear, low_rank

TRANSPOSED = ("ConvTransposeNHWC", "ConvTransposeNWC")
LOW_RANK = "NMMatMulLowRank"


def is_product(node: ir.Node) -> bool:
    """Whether ``products`` has any for ``node``."""
    if node.op_type in (*TRANSPOSED, LOW_RANK):
        return node.inputs[1].const_value is not None and linear.is_float(node.inputs[0])
    return linear.is_layer(node)


def products(node: ir.Node) -> list[tuple]:
    """``(spec, weight)`` of each, none where ``node`` is no layer of ours with a constant weight."""
    if node.op_type in TRANSPOSED:
        return conv_transpose.products(node)
    if node.op_type == LOW_RANK:
        return low_rank.products(node)
    if integer.is_layer(node):
        return [integer.layer(node)]
    made = linear.constant_layer(node)
    return [made] if made else []
