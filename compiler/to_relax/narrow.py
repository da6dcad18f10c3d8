"""Values that lie in memory with 16 bits: rounded where they are made, widened where they are read.

Rounding is an elementwise kernel behind the producer and widening one before each reader, so fusing puts both
into kernels that are there anyway.  A contraction that takes bit patterns reads them as they are.
"""

from collections.abc import Set
from math import prod

import onnx_ir as ir
from tvm import relax, te, tirx

from sparsec.compiler.to_relax.activations import reshaped
from sparsec.schedules import tir
from sparsec.schedules.elements import Element
from sparsec.schedules.halves import HALVES

#: Operators that give the same elements another shape.
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


class Narrow:
    """``values`` are to be kept as bit patterns of ``half``; ``bits`` knows those of float32 expressions."""

    def __init__(self, importer, values: Set[ir.Value], half: str):
        self.importer, self.bb, self.values, self.half = importer, importer.bb, values, HALVES[half]
        self.bits: dict[relax.Var, relax.Var] = {}

    def read(self, node: ir.Node, inputs: list) -> None:
        """Makes the narrow ones of a node's ``inputs`` float32 again, for this reader alone."""
        for position, value in enumerate(node.inputs):
            if value in self.values:
                inputs[position] = self.wide(self.bits[inputs[position]])

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
            self._kept(result)
        return result

    def wide(self, kept):
        """The float32 values of bit patterns that lie in memory."""
        wide = self.bb.emit_te(self._widen, kept, primfunc_name_hint=f"from_{self.half.name}")
        self.bits[wide] = kept
        return wide

    def operand(self, x, element: Element, shape):
        """``x`` as a contraction of ``element`` takes it, in ``shape``, which may have more channels."""
        if element.activation == "float32":
            return reshaped(self.importer, x, shape)
        kept = self._kept(x)
        if prod(shape) == prod(int(d) for d in kept.ty.shape):
            return reshaped(self.importer, kept, shape)
        kept = reshaped(self.importer, kept, [*shape[:-1], int(kept.ty.shape[-1])])
        return self.bb.emit_te(_filled, kept, shape[-1], primfunc_name_hint="more_channels")

    def _kept(self, x):
        """The bit patterns of ``x``."""
        if x not in self.bits:
            self.bits[x] = self.bb.emit_te(self._narrow, x, primfunc_name_hint=f"to_{self.half.name}")
        return self.bits[x]

    def _widen(self, x):
        return te.compute(x.shape, lambda *i: self.half.widened(x(*i)), name=f"from_{self.half.name}")

    def _narrow(self, x):
        return te.compute(x.shape, lambda *i: self.half.narrowed(x(*i)), name=f"to_{self.half.name}")


def _filled(x, channels: int):
    """``x`` with ``channels`` along the last axis, zeros behind those that it has."""
    own = tir.i64(int(x.shape[-1]))

    def value(*i):
        return tirx.if_then_else(i[-1] < own, x(*i[:-1], tirx.min(i[-1], own - 1)), tirx.const(0, x.dtype))

    return te.compute([*x.shape[:-1], tir.i64(channels)], value, name="more_channels")
