"""Operators on quantised values that standard ONNX has no operator for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.ops.base import Attribute, OpDef, function

_ATTRIBUTES = {
    "a": Attribute(ir.AttributeType.FLOAT, "scale of A over that of the result", required=True),
    "b": Attribute(ir.AttributeType.FLOAT, "scale of B over that of the result", required=True),
    "shift": Attribute(ir.AttributeType.FLOAT, "what the zero points come to", required=True),
    "offset": Attribute(ir.AttributeType.INT, "how far the integers lie above those that are summed", 0),
}


def quantized_add(a_codes, b_codes, a: float, b: float, shift: float, offset: int = 0) -> np.ndarray:
    """The sum as uint8; a product and a sum in float64 are one rounding in float32."""
    x, y = (codes.astype(np.float64) - offset for codes in (a_codes, b_codes))
    inner = (y * np.float64(np.float32(b)) + np.float32(shift)).astype(np.float32)
    steps = (x * np.float64(np.float32(a)) + inner).astype(np.float32)
    return np.clip(np.rint(steps) + offset, 0, 255).astype(np.uint8)


def _body(opset: int) -> ir.Function:
    def build(tape: ir.tape.Tape, x: ir.Value, y: ir.Value) -> ir.Value:
        def number(name: str, kind: str, value: ir.AttributeType) -> ir.Value:
            made = tape.op("Constant", [], {kind: ir.RefAttr(kind, name, value)})
            return tape.op("Cast", [made], {"to": int(ir.DataType.DOUBLE)})

        def fused(codes: ir.Value, factor: ir.Value, rest: ir.Value) -> ir.Value:
            wide = tape.op("Sub", [tape.op("Cast", [codes], {"to": int(ir.DataType.DOUBLE)}), offset])
            exact = tape.op("Add", [tape.op("Mul", [wide, factor]), rest])
            return tape.op("Cast", [exact], {"to": int(ir.DataType.FLOAT)})

        a, b, shift = (number(n, "value_float", ir.AttributeType.FLOAT) for n in ("a", "b", "shift"))
        offset = number("offset", "value_int", ir.AttributeType.INT)
        inner = tape.op("Cast", [fused(y, b, shift)], {"to": int(ir.DataType.DOUBLE)})
        one = tape.op("Constant", [], {"value_float": 1.0})
        zero = tape.op("Cast", [offset], {"to": int(ir.DataType.UINT8)})
        return tape.op("QuantizeLinear", [fused(x, a, inner), one, zero])

    return function("QuantizedAdd", ["A", "B"], opset, build, _ATTRIBUTES)


def _infer(node: ir.Node):
    a, b = (value.shape for value in node.inputs)
    if a is None or b is None or not (a.is_static() and b.is_static()):
        return node.inputs[0].dtype, None
    return node.inputs[0].dtype, ir.Shape(np.broadcast_shapes(tuple(a.numpy()), tuple(b.numpy())))


OPS = (
    OpDef(
        name="QuantizedAdd",
        inputs=(("A", "uint8"), ("B", "uint8, broadcasts with A")),
        formula="saturate(round((A - offset) * a + ((B - offset) * b + shift)) + offset)",
        source="com.microsoft QLinearAdd, as ONNX Runtime computes it with AVX2: two fused multiply-adds",
        special="Rounds ties to even.",
        body=_body,
        reference=quantized_add,
        infer=_infer,
        attributes=_ATTRIBUTES,
    ),
)
