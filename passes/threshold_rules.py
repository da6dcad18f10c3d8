"""The forms of thresholding, by the operator they end in; what each computes for NaN is noted."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import FLOATS, attribute, depends_on, is_op, producer
from sparsec.passes.threshold_forms import (
    MINUS_INF,
    NAN_KEPT,
    NAN_LOST,
    ZERO_SIGN,
    Form,
    Refusal,
    Result,
    Threshold,
    as_above,
    clamp,
    condition,
    is_abs_of,
    minus,
    minus_negated,
    negation,
    show,
)
from sparsec.passes.threshold_where import leg, where


def match(node: ir.Node) -> Result:
    """The thresholding form that ends in ``node``, or why it is none, or None when nothing looks like it."""
    if not is_op(node, *_RULES):
        return None
    return _RULES[node.op_type](node)


def _shrink(node: ir.Node) -> Result:
    x, lambd, bias = node.inputs[0], attribute(node, "lambd", 0.5), attribute(node, "bias", 0.0)
    if bias not in (0.0, lambd):
        return Refusal(f"Shrink has bias {bias:.6g}; 0 (hard) or lambd {lambd:.6g} (soft) is required", x)
    op, notes = ("HardThreshold", ()) if bias == 0.0 else ("SoftThreshold", (NAN_KEPT,))
    return _from_attribute(op, x, "lambd", lambd, notes)


def _thresholded_relu(node: ir.Node) -> Result:
    return _from_attribute("JumpRelu", node.inputs[0], "alpha", attribute(node, "alpha", 1.0), ())


def _from_attribute(op: str, x: ir.Value, name: str, number: float, notes: tuple[str, ...]) -> Result:
    if x.dtype not in FLOATS:
        found = "unknown" if x.dtype is None else x.dtype.name
        return Refusal(f"the element type of x is {found}; a float type is required", x)
    tau = np.array(number, x.dtype.numpy())
    if float(tau) != number and np.isfinite(number):
        return Refusal(f"{name} {number:.9g} has no exact value in x's type {x.dtype.name}", x)
    return Form(op, x, Threshold(None, tau), None, notes)


def _clamped(node: ir.Node) -> Result:
    """Relu, Clip, Min, Max over x - t or over a soft threshold."""
    bounds = clamp(node.outputs[0])
    if bounds is None:
        return None
    high = bounds.high
    inner = bounds.inner.producer()
    soft = match(inner) if is_op(inner, "Shrink", "Mul", "Sub", "Add", "Where") else None
    if isinstance(soft, Form) and soft.op == "SoftThreshold":
        if bounds.low_is_zero:
            return _shifted(soft.x, soft.tau, high, soft.notes + bounds.notes)
        if bounds.low is not None and high is not None and np.all(bounds.low == -high):
            return Form("ClippedSoftThreshold", soft.x, soft.tau, high, soft.notes)
        reason = (
            f"clips a soft threshold to [{show(bounds.low)}, {show(high)}]; [-m, m] or [0, m] is required"
        )
        return Refusal(reason, soft.x, inner_may_match=True)
    if not bounds.low_is_zero or (form := minus(bounds.inner)) is None:
        return None
    x, t = form
    if t.negated and np.any(t.array < 0):  # Relu(x + b): a bias, as almost every layer has one
        return None
    if t.array is None and (t.value is x or depends_on(t.value, x)):  # no threshold: a difference
        return None
    return _shifted(x, t, high, bounds.notes)


def _shifted(x: ir.Value, t: Threshold, high: np.ndarray | None, notes: tuple[str, ...]) -> Form:
    return Form("ShiftedRelu" if high is None else "ClippedShiftedRelu", x, t, high, notes)


def _mul(node: ir.Node) -> Result:
    """Sign(x) * Relu(Abs(x) - t), and x * Cast(x > t)."""
    for a, b in (node.inputs, node.inputs[::-1]):
        if (sign := producer(a, "Sign")) is not None:
            x, bounds = sign.inputs[0], clamp(b)
            form = minus(bounds.inner) if bounds is not None and bounds.low_is_zero else None
            if form is not None and is_abs_of(form[0], x):
                op = "SoftThreshold" if bounds.high is None else "ClippedSoftThreshold"
                return Form(op, x, form[1], bounds.high, (*bounds.notes, ZERO_SIGN))
        cast = producer(a, "Cast", "CastLike")
        if cast is None or b is None or b is a or (keeps := condition(cast.inputs[0], b)) is None:
            continue
        keeps = as_above(keeps)
        if keeps.inverted:
            continue
        if keeps.kind == "abs":
            return Form("HardThreshold", b, keeps.t, None, (NAN_LOST, ZERO_SIGN), keeps.strict)
        return Form("JumpRelu", b, keeps.t, None, (NAN_LOST, MINUS_INF, ZERO_SIGN), keeps.strict)
    return None


def _sub(node: ir.Node) -> Result:
    """Relu(x - t) - Relu(-x - t), and x - Clip(x, -t, t)."""
    a, b = node.inputs
    bounds = clamp(b)
    if bounds is not None and bounds.inner is a and bounds.low is not None and bounds.high is not None:
        if not np.all(bounds.low == -bounds.high):
            shown = f"[{show(bounds.low)}, {show(bounds.high)}]"
            return Refusal(f"subtracts x clipped to {shown}; [-tau, tau] is required", a)
        return Form("SoftThreshold", a, Threshold(None, np.asarray(bounds.high)))
    return _two_relus(a, b)


def _two_relus(a: ir.Value | None, b: ir.Value | None) -> Result:
    up, down = clamp(a), clamp(b)
    if up is None or down is None or not (up.low_is_zero and down.low_is_zero):
        return None
    upper, lower = minus(up.inner), minus_negated(down.inner)
    if upper is None or lower is None or upper[0] is not lower[0]:
        return None
    x, t = upper
    if not t.same(lower[1]):
        return Refusal("the positive and the negative side have different thresholds", x)
    if (up.high is None) != (down.high is None) or (
        up.high is not None and not np.array_equal(up.high, down.high)
    ):
        return Refusal("the positive and the negative side are clipped differently", x)
    return Form(
        "SoftThreshold" if up.high is None else "ClippedSoftThreshold", x, t, up.high, up.notes or down.notes
    )


def _add(node: ir.Node) -> Result:
    """Relu(x - t) + -Relu(-x - t), and Where(x > t, x - t, 0) + Where(x < -t, x + t, 0)."""
    for a, b in (node.inputs, node.inputs[::-1]):
        if (inner := negation(b)) is not None and (found := _two_relus(a, inner)) is not None:
            return found
        upper, lower = leg(producer(a, "Where"), "above"), leg(producer(b, "Where"), "below")
        if upper is None or lower is None or upper[0] is not lower[0]:
            continue
        if not upper[1].same(lower[1]):
            return Refusal("the positive and the negative side have different thresholds", upper[0])
        return Form("SoftThreshold", upper[0], upper[1], None, (NAN_KEPT,))
    return None


_RULES = {
    "Shrink": _shrink,
    "ThresholdedRelu": _thresholded_relu,
    "Relu": _clamped,
    "Clip": _clamped,
    "Min": _clamped,
    "Max": _clamped,
    "Mul": _mul,
    "Sub": _sub,
    "Add": _add,
    "Where": where,
}
