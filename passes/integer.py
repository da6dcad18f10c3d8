"""Recognise the integers in a quantised model: QDQ as quantisers write it, and dynamic quantisation.

    DequantizeLinear, MatMul | Gemm | Conv, QuantizeLinear  ->  MatMulInteger | ConvInteger, and a factor
    DequantizeLinear, Add | Mul | average, QuantizeLinear   ->  the same on integers
    DequantizeLinear, Reshape | MaxPool | ..., Quantize...  ->  the same on integers
    DynamicQuantizeLinear, MatMulInteger | ConvInteger      ->  the same with int8 weights without zero points

Integers are exact; ``integer_layers`` and ``integer_sums`` say how results are rounded to 8 bits again,
which is as ONNX Runtime's optimised session does it.  All activations become uint8.  What stays float reads
a DequantizeLinear of its own, which fuses into it, and weights of what stays float become floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from sparsec.passes import integer_dynamic, integer_layers, integer_moves, integer_sums
from sparsec.passes.base import SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import is_op, remove_dead
from sparsec.passes.quantised import constant_weight
from sparsec.passes.writer import Writer, replace_value

QUANTISED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
)


@dataclass(frozen=True)
class RecogniseInteger(SparsecPass):
    NAME: ClassVar[str] = integer_layers.NAME
    SUMMARY: ClassVar[str] = "find the integer layers of quantised models (QDQ, dynamic)"
    EXAMPLE: ClassVar[str] = integer_layers.NAME

    def run(self, model: ir.Model) -> list[Finding]:
        if not any(is_op(node, *QUANTISED) for node in model.graph):
            return []
        integer_moves.to_reals(model)
        integer_moves.to_unsigned(model)
        integer_moves.to_integers(model)
        findings = integer_dynamic.find(model)
        findings += integer_layers.find(model)
        findings += integer_sums.find(model)
        integer_moves.to_reals(model, integer_moves.for_attention)
        _fold(model)
        _one_each(model)
        return findings


def _fold(model: ir.Model) -> None:
    """Constants that are still dequantised become floats."""
    for node in list(model.graph):
        if node.graph is None or not is_op(node, "DequantizeLinear"):
            continue
        found = constant_weight(node.outputs[0])
        if found is not None:
            replace_value(node.outputs[0], Writer(model, node).constant(found.real, "real"))
            remove_dead([node.outputs[0]])


def _one_each(model: ir.Model) -> None:
    """Each reader of a DequantizeLinear gets one of its own, so that nothing has to keep the floats."""
    for node in list(model.graph):
        if not is_op(node, "DequantizeLinear") or node.outputs[0].is_graph_output():
            continue
        out = node.outputs[0]
        for reader, index in list(out.uses())[1:]:
            write = Writer(model, reader)
            own = write.op("DequantizeLinear", list(node.inputs), out.dtype, out.shape, dict(node.attributes))
            own.producer().metadata_props.update(node.metadata_props)
            reader.replace_input_with(index, own)
