"""Sparsemax: the Euclidean projection of each row onto the probability simplex.

Martins & Astudillo, "From Softmax to Sparsemax" (2016), equations 2 to 4 and algorithm 1: with z sorted in
descending order, ``k = max{k : 1 + k*z_(k) > sum_{j<=k} z_(j)}``, ``tau = (sum_{j<=k} z_(j) - 1) / k`` and
``p = max(z - tau, 0)``.  The row's maximum is subtracted first, as for softmax: sparsemax does not change
under a shift, and large inputs lose no digits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.ops.base import Attribute, OpDef, function, same_as_first

_ATTRIBUTES = {"axis": Attribute(ir.AttributeType.INT, "the axis whose slices are projected", default=-1)}


def sparsemax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Sparsemax of every slice along ``axis``, in x's dtype and shape.

    Sums are accumulated in descending order, in x's dtype but at least in float32.

    A slice that holds NaN or +inf, or nothing but -inf, is NaN as a whole, like softmax.  Other -inf
    entries (masks) get exactly 0.
    """
    if x.dtype.itemsize < 4:
        return sparsemax(x.astype(np.float32), axis).astype(x.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        z = x - x.max(axis=axis, keepdims=True)
        ordered = -np.sort(-z, axis=axis)
        n = x.shape[axis]
        ranks = np.arange(1, n + 1, dtype=x.dtype).reshape(
            [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)]
        )
        excess = np.cumsum(ordered, axis=axis, dtype=x.dtype) - x.dtype.type(1)
        size = (ranks * ordered > excess).sum(axis=axis, keepdims=True)
        tau = np.take_along_axis(excess, np.maximum(size - 1, 0), axis=axis) / size.astype(x.dtype)
        return np.maximum(z - np.where(size > 0, tau, np.nan).astype(x.dtype), x.dtype.type(0))


def _build(t: ir.tape.Tape, x: ir.Value) -> ir.Value:
    along = {"axis": ir.RefAttr("axis", "axis", ir.AttributeType.INT)}
    axis = t.op("Constant", [], {"value_int": ir.RefAttr("value_int", "axis", ir.AttributeType.INT)})
    one = t.op("Constant", [], {"value_int": 1})
    vector = t.op("Constant", [], {"value_ints": [1]})
    axes = t.op("Reshape", [axis, vector])
    z = t.op("Sub", [x, t.op("ReduceMax", [x, axes], {"keepdims": 1})])
    n = t.op("Gather", [t.op("Shape", [x]), axes], {"axis": 0})
    ordered, _ = t.op_multi_out("TopK", [z, n], along, num_outputs=2)
    one_x = t.op("CastLike", [one, x])
    # 1, 2, ... n along the axis: a running sum of ones needs no rank-dependent reshape
    ranks = t.op("CumSum", [t.op("Expand", [one_x, t.op("Shape", [x])]), axis])
    excess = t.op("Sub", [t.op("CumSum", [ordered, axis]), one_x])
    support = t.op("Greater", [t.op("Mul", [ranks, ordered]), excess])
    size = t.op("ReduceSum", [t.op("Cast", [support], {"to": ir.DataType.INT64}), axes], {"keepdims": 1})
    # size is 0 only when the slice has NaN; index -1 is then the last element, and nothing is out of bounds
    last = t.op("GatherElements", [excess, t.op("Sub", [size, one])], along)
    tau = t.op("Div", [last, t.op("CastLike", [size, x])])
    # TopK may put a NaN anywhere, and then tau need not be NaN: add 0, or NaN where the slice has one
    zero_x = t.op("Sub", [one_x, one_x])
    bounded = t.op("Clip", [z, t.op("Neg", [one_x]), zero_x])
    guard = t.op("Mul", [t.op("ReduceSum", [bounded, axes], {"keepdims": 1}), zero_x])
    tau = t.op("Add", [tau, guard])
    return t.op("Relu", [t.op("Sub", [z, tau])])


def _body(opset: int) -> ir.Function:
    return function("Sparsemax", ["X"], opset, _build, _ATTRIBUTES)


OPS = (
    OpDef(
        name="Sparsemax",
        inputs=(("X", "any shape of rank 1 or more, float"),),
        formula="max(z - tau, 0) with tau such that each slice sums to 1",
        source='Martins & Astudillo, "From Softmax to Sparsemax" (2016), algorithm 1',
        special="A slice with NaN or +inf, or of -inf only, is NaN whole (as softmax). A -inf entry gets 0.",
        body=_body,
        reference=sparsemax,
        infer=same_as_first,
        attributes=_ATTRIBUTES,
    ),
)
