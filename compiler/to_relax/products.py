"""The products that compute a layer with a constant weight: what is packed, timed and chosen for it."""

import onnx_ir as ir

from sparsec.compiler.to_relax import conv_transpose, integer, linear, low_rank

TRANSPOSED = ("ConvTransposeNHWC", "ConvTransposeNWC")


def products(node: ir.Node) -> list[tuple]:
    """``(spec, weight)`` of each, none where ``node`` is no layer of ours with a constant weight."""
    if node.op_type in TRANSPOSED:
        return conv_transpose.products(node)
    if node.op_type == "NMMatMulLowRank":
        return low_rank.products(node)
    if integer.is_layer(node):
        return [integer.layer(node)]
    made = linear.constant_layer(node)
    return [made] if made else []
