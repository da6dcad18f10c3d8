"""Elementwise operators with an exact meaning of ours: NaN goes through, as in ONNX Runtime."""

import onnx_ir as ir
from tvm import relax, te, tirx

from sparsec.compiler.to_relax.views import scalar, shape_of
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


def sign(importer, node: ir.Node, inputs):
    def direction(x):
        one, zero = tirx.const(1, x.dtype), tirx.const(0, x.dtype)
        if str(x.dtype).startswith("uint"):
            return te.compute(x.shape, lambda *i: tirx.Select(x(*i) > zero, one, zero), name="sign")
        negative = tirx.const(-1, x.dtype)
        return te.compute(
            x.shape,
            lambda *i: tirx.Select(x(*i) > zero, one, tirx.Select(x(*i) < zero, negative, x(*i))),
            name="sign",
        )

    return importer.bb.emit_te(direction, inputs[0], primfunc_name_hint="sign")


def divide(importer, node: ir.Node, inputs):
    """A quotient by a constant that only Erf reads, as in GELU: a product, whose rounding Erf hides.

    A division takes a third as long as Erf itself.
    """
    by = scalar(node.inputs[1])
    readers = [use.node for use in node.outputs[0].uses()]
    if by is None or not 1e-9 < abs(by) < 1e9 or {reader.op_type for reader in readers} != {"Erf"}:
        return None
    if node.outputs[0].is_graph_output() or shape_of(node.inputs[0]) != shape_of(node.outputs[0]):
        return None
    return relax.op.multiply(inputs[0], relax.const(1 / by, "float32"))


def reshape(importer, node: ir.Node, inputs):
    """Reshape and its relatives: the shape of the output is known."""
    return relax.op.reshape(inputs[0], [int(d) for d in node.outputs[0].shape])
