"""Elementwise operators with an exact meaning of ours: NaN goes through, as in ONNX Runtime."""

import onnx_ir as ir
from tvm import te, tirx

from sparsec.schedules.threshold import threshold as threshold_te


def threshold(importer, node: ir.Node, inputs):
    """The thresholding operators of domain ai.sparsec."""
    return importer.bb.emit_te(
        lambda *tensors: threshold_te(node.op_type, *tensors), *inputs, primfunc_name_hint="threshold"
    )


def relu(importer, node: ir.Node, inputs):
    def positive(x):
        zero = tirx.const(0, x.dtype)
        return te.compute(x.shape, lambda *i: tirx.Select(x(*i) < zero, zero, x(*i)), name="relu")

    return importer.bb.emit_te(positive, inputs[0], primfunc_name_hint="relu")
