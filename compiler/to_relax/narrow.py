"""Values that lie in memory as bfloat16: rounded where they are made, widened where they are read.

Rounding is an elementwise kernel behind the producer and widening one before each reader, so fusing puts both
into kernels that are there anyway.  A contraction that takes bit patterns reads them as they are.
"""

from collections.abc import Set

import onnx_ir as ir
from tvm import relax, te

from sparsec.compiler.to_relax.activations import reshaped
from sparsec.schedules import elements

#: Operators that give the same elements another shape.
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


class Narrow:
    """``values`` are to be kept as bit patterns; ``bits`` knows those of float32 expressions."""

    def __init__(self, importer, values: Set[ir.Value]):
        self.importer, self.bb, self.values = importer, importer.bb, values
        self.bits: dict[relax.Var, relax.Var] = {}

    def read(self, node: ir.Node, inputs: list) -> None:
        """Makes the narrow ones of a node's ``inputs`` float32 again, for this reader alone."""
        for position, value in enumerate(node.inputs):
            if value in self.values:
                kept = self.bits[inputs[position]]
                wide = self.bb.emit_te(_widen, kept, primfunc_name_hint="from_bfloat16")
                inputs[position] = wide
                self.bits[wide] = kept

    def write(self, node: ir.Node, inputs: list, result):
        """``result`` of ``node``, with its bit patterns known where its value is a narrow one."""
        if not self.values.intersection(node.outputs):
            return result
        if not isinstance(result, relax.Var):  # a second name for a variable would stand in fusion's way
            result = self.bb.emit(result)
        if node.op_type in VIEWS and inputs[0] in self.bits:
            shape = [int(d) for d in result.ty.shape]
            self.bits[result] = self.bb.emit(relax.op.reshape(self.bits[inputs[0]], shape))
        else:
            self.operand(result, elements.BFLOAT16, [int(d) for d in result.ty.shape])
        return result

    def operand(self, x, element: elements.Element, shape):
        """``x`` as a contraction of ``element`` takes it, in ``shape``."""
        if element.activation == "float32":
            return reshaped(self.importer, x, shape)
        if x not in self.bits:
            self.bits[x] = self.bb.emit_te(_narrow, x, primfunc_name_hint="to_bfloat16")
        return reshaped(self.importer, self.bits[x], shape)


def _widen(x):
    return te.compute(x.shape, lambda *i: elements.widened(x(*i)), name="from_bfloat16")


def _narrow(x):
    return te.compute(x.shape, lambda *i: elements.narrowed(x(*i)), name="to_bfloat16")
