"""Sums, products and averages of quantised values, computed on their integers as ONNX Runtime does.

    Add                 round(a * (sa / sy) + (b * (sb / sy) + c)),  c = zy - (sa / sy * za + sb / sy * zb)
    Mul                 round((a - za) * (b - zb) * (sa * sb / sy) + zy)
    AveragePool         round(AveragePool(DequantizeLinear(x)) / sy + zy)
    GlobalAveragePool   round((sum of x - n * zx) * (sx / (sy * n))) + zy

all in float32, ties to even, and the sum with fused multiply-adds.  They stand between DequantizeLinear in
front and QuantizeLinear behind, with Relu or Clip in between at most.  Source: ONNX Runtime's QLinear
operators.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from sparsec.passes.findings import Finding
from sparsec.passes.graph import is_op, node_name, remove_dead
from sparsec.passes.integer_layers import NAME, limited, requantise
from sparsec.passes.integer_moves import quantise
from sparsec.passes.ops import DOMAIN
from sparsec.passes.quantised import Quantised, dequantised, tail
from sparsec.passes.writer import Writer, replace_value

_FLOAT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT32


def find(model: ir.Model) -> list[Finding]:
    """Rewrites what stands between quantised values; one finding for each."""
    findings = []
    for node in list(model.graph):
        form = FORMS.get(node.op_type)
        behind = tail(node.outputs[0]) if form and is_op(node, node.op_type) else None
        given = [dequantised(value) for value in node.inputs[:2]] if behind else [None]
        if any(g is None for g in given) or {g.signed for g in given} != {behind.quantised.signed}:
            continue
        made = behind.quantised
        integers = form(Writer(model, node), node, given, made)
        replace_value(made.value, limited(Writer(model, made.value.producer()), integers, behind))
        remove_dead([made.value])
        reason = "between integers, in ONNX Runtime's arithmetic"
        before = ", ".join([node.op_type, *behind.ops])
        findings.append(
            Finding(NAME, node_name(node), "applied", reason, before, f"{node.op_type} of integers")
        )
    return findings


def _add(write: Writer, node: ir.Node, given: list[Quantised], made: Quantised) -> ir.Value:
    a, b = given
    attributes = sum_factors(a, b, made)
    return write.op(
        "QuantizedAdd",
        [a.value, b.value],
        ir.DataType.UINT8,
        node.outputs[0].shape,
        attributes,
        domain=DOMAIN,
    )


def sum_factors(a: Quantised, b: Quantised, made: Quantised) -> dict[str, float | int]:
    """The attributes of QuantizedAdd; zero points are those of the source model, int8 or uint8."""
    factors = a.scale / made.scale, b.scale / made.scale
    zeros = (np.float32(q.zero - q.offset) for q in (a, b))
    moved = [factor * zero for factor, zero in zip(factors, zeros, strict=True)]
    shift = np.float32(made.zero - made.offset) - (moved[0] + moved[1])
    return {"a": float(factors[0]), "b": float(factors[1]), "shift": float(shift), "offset": made.offset}


def _multiply(write: Writer, node: ir.Node, given: list[Quantised], made: Quantised) -> ir.Value:
    shape = node.outputs[0].shape
    centred = [_centred(write, g) for g in given]
    steps = _steps(
        write, write.op("Mul", centred, _INT32, shape), given[0].scale * given[1].scale / made.scale
    )
    return _about(write, steps, made)


def _average(write: Writer, node: ir.Node, given: list[Quantised], made: Quantised) -> ir.Value:
    shape = node.outputs[0].shape
    mean = write.op("AveragePool", [node.inputs[0]], _FLOAT, shape, dict(node.attributes))
    return _about(write, write.op("Div", [mean, write.constant(made.scale, "scale")], _FLOAT, shape), made)


def _global_average(write: Writer, node: ir.Node, given: list[Quantised], made: Quantised) -> ir.Value:
    (x,), shape = given, node.outputs[0].shape
    axes = range(2, len(shape))
    count = np.float32(prod(int(node.inputs[0].shape[axis]) for axis in axes))
    axes = write.constant(np.array(axes, np.int64), "axes")
    total = write.op("ReduceSum", [_centred(write, x), axes], _INT32, shape, {"keepdims": 1})
    return requantise(write, _steps(write, total, x.scale / (made.scale * count)), made)


def _centred(write: Writer, given: Quantised) -> ir.Value:
    """Integers less their zero point."""
    wide = write.op("Cast", [given.value], _INT32, given.value.shape, {"to": int(_INT32)})
    if not given.zero:
        return wide
    return write.op("Sub", [wide, write.constant(np.int32(given.zero), "zero")], _INT32, given.value.shape)


def _steps(write: Writer, total: ir.Value, factor: np.float32) -> ir.Value:
    real = write.op("Cast", [total], _FLOAT, total.shape, {"to": int(_FLOAT)})
    return write.op("Mul", [real, write.constant(np.float32(factor), "factor")], _FLOAT, total.shape)


def _about(write: Writer, steps: ir.Value, made: Quantised) -> ir.Value:
    """``steps`` from the zero point as integers; the zero point is added before rounding."""
    if made.zero != made.offset:
        zero = write.constant(np.float32(made.zero - made.offset), "zero")
        steps = write.op("Add", [steps, zero], _FLOAT, steps.shape)
    return quantise(write, steps, Quantised(made.value, np.float32(1), made.offset, made.signed), steps.shape)


#: Operator to what writes its integer form: ``form(write, node, inputs, output)``.
FORMS = {
    "Add": _add,
    "Mul": _multiply,
    "AveragePool": _average,
    "GlobalAveragePool": _global_average,
}
