"""Alpha-entmax: what lies between softmax (alpha 1) and sparsemax (alpha 2), with exact zeros.

    entmax(x)_i = max((alpha - 1) x_i - tau, 0)^(1 / (alpha - 1)),   tau such that each slice sums to 1

(Peters, Niculae & Martins, "Sparse Sequence-to-Sequence Models", 2019; tau is found by halving an interval,
as there).  The row's maximum is subtracted first, as for softmax: with z = (alpha - 1) (x - max x) the sum
is at least 1 at tau = -1 and at most 1 at tau = -n^(1 - alpha).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.ops.base import Attribute, OpDef, function, same_as_first

_ATTRIBUTES = {
    "alpha": Attribute(ir.AttributeType.FLOAT, "above 1; 1.5 is entmax15, 2 is sparsemax", default=1.5),
    "axis": Attribute(ir.AttributeType.INT, "the axis whose slices are mapped", default=-1),
}
#: Halvings of an interval no longer than 1: to float32's last digit.
_HALVINGS = 24


def entmax(x: np.ndarray, alpha: float = 1.5, axis: int = -1) -> np.ndarray:
    """Alpha-entmax of every slice along ``axis``, in x's dtype and shape, computed in float64.

    A slice that holds NaN or +inf, or nothing but -inf, is NaN as a whole, like softmax.  Other -inf
    entries (masks) get exactly 0.
    """
    rest = float(np.float32(alpha)) - 1  # an attribute is a float32
    with np.errstate(invalid="ignore"):
        z = x.astype(np.float64)
        z = (z - z.max(axis=axis, keepdims=True)) * rest
        top = z.max(axis=axis, keepdims=True)  # 0, or NaN
    low, high = top - 1, top - float(x.shape[axis]) ** -rest
    for _ in range(60):  # then they are neighbours
        middle = (low + high) / 2
        enough = (np.maximum(z - middle, 0) ** (1 / rest)).sum(axis=axis, keepdims=True) >= 1
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return (np.maximum(z - low, 0) ** (1 / rest)).astype(x.dtype)


def _build(t: ir.tape.Tape, x: ir.Value) -> ir.Value:
    def number(value: float) -> ir.Value:
        return t.op("CastLike", [t.op("Constant", [], {"value_float": value}), x])

    def power(v: ir.Value, exponent: ir.Value) -> ir.Value:
        return t.op("Pow", [v, exponent])

    def total(terms: ir.Value) -> ir.Value:
        return t.op("ReduceSum", [terms, axes], {"keepdims": 1})

    def above(tau: ir.Value) -> ir.Value:
        return t.op("Relu", [t.op("Sub", [z, tau])])

    one, zero, half = number(1.0), number(0.0), number(0.5)
    axis = t.op("Constant", [], {"value_int": ir.RefAttr("value_int", "axis", ir.AttributeType.INT)})
    axes = t.op("Reshape", [axis, t.op("Constant", [], {"value_ints": [1]})])
    alpha = t.op("Constant", [], {"value_float": ir.RefAttr("value_float", "alpha", ir.AttributeType.FLOAT)})
    alpha = t.op("CastLike", [alpha, x])
    rest = t.op("Sub", [alpha, one])
    exponent = t.op("Div", [one, rest])
    z = t.op("Mul", [t.op("Sub", [x, t.op("ReduceMax", [x, axes], {"keepdims": 1})]), rest])
    n = t.op("CastLike", [t.op("Gather", [t.op("Shape", [x]), axes], {"axis": 0}), x])
    tau = t.op("Neg", [one])
    width = t.op("Sub", [one, power(n, t.op("Neg", [rest]))])
    for _ in range(_HALVINGS):
        width = t.op("Mul", [width, half])
        middle = t.op("Add", [tau, width])
        enough = t.op("GreaterOrEqual", [total(power(above(middle), exponent)), one])
        tau = t.op("Where", [enough, middle, tau])
    # The last digits: Newton's step for the norm ||max(z - tau, 0)||_(1 / (alpha - 1)) = 1, which overshoots
    # for no alpha up to 2, and is kept in the interval for all.
    v = above(tau)
    terms = power(v, exponent)
    slopes = t.op("Where", [t.op("Greater", [v, zero]), power(v, t.op("Sub", [exponent, one])), zero])
    mass = total(terms)
    excess = t.op("Sub", [mass, power(mass, t.op("Sub", [one, rest]))])
    tau = t.op("Add", [tau, t.op("Min", [t.op("Div", [excess, total(slopes)]), width])])
    return power(above(tau), exponent)


def _body(opset: int) -> ir.Function:
    return function("Entmax", ["X"], opset, _build, _ATTRIBUTES)


OPS = (
    OpDef(
        name="Entmax",
        inputs=(("X", "any shape of rank 1 or more, float"),),
        formula="max((alpha - 1) z - tau, 0)^(1 / (alpha - 1)) with tau such that each slice sums to 1",
        source='Peters, Niculae & Martins, "Sparse Sequence-to-Sequence Models" (2019)',
        special="A slice with NaN or +inf, or of -inf only, is NaN whole (as softmax). A -inf entry gets 0.",
        body=_body,
        reference=entmax,
        infer=same_as_first,
        attributes=_ATTRIBUTES,
    ),
)
