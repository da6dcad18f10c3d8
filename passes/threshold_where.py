"""The forms of thresholding that are written with Where."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import const_array, producer
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
    condition,
    is_sign_of,
    is_zeros,
    minus,
    show,
)


def leg(node: ir.Node | None, kind: str) -> tuple[ir.Value, Threshold] | None:
    """(x, t) of Where(x > t, x - t, 0) (above) or Where(x < -t, x + t, 0) (below)."""
    for keep, other, when in _orientations(node):
        form = minus(keep)
        if form is None or not is_zeros(other, form[0]):
            continue
        x, t = form[0], form[1] if kind == "above" else -form[1]
        keeps = condition(node.inputs[0], x)
        if keeps is not None and keeps.kind == kind and keeps.inverted != when and keeps.t.same(t):
            return x, t
    return None


def _orientations(node: ir.Node | None) -> Iterator[tuple[ir.Value, ir.Value, bool]]:
    """(kept branch, other branch, value of the condition that keeps) for both readings of a Where."""
    if node is not None:
        yield node.inputs[1], node.inputs[2], True
        yield node.inputs[2], node.inputs[1], False


def where(node: ir.Node) -> Result:
    """Where(x > t, x, 0), Where(Abs(x) <= t, 0, x), Where(Abs(x) > t, x - Sign(x)*t, 0) and their mirrors."""
    for keep, other, when in _orientations(node):
        if const_array(keep) is not None:
            continue
        found = _where_soft(node, keep, other, when) or _where_keep(node, keep, other, when)
        if found is not None:
            return found
    return None


def _where_keep(node: ir.Node, x: ir.Value, other: ir.Value, when: bool) -> Result:
    keeps = condition(node.inputs[0], x)
    if keeps is None:
        return None
    keeps = as_above(keeps)
    if keeps.inverted == when:
        return None
    scaled = _times_zero(other, x)
    if not scaled and not is_zeros(other, x):
        if (small := const_array(other)) is None:
            return None
        return Refusal(f"inputs under the threshold become {show(small)}, not 0", x)
    op = "HardThreshold" if keeps.kind == "abs" else "JumpRelu"
    notes = (NAN_LOST,) if scaled or keeps.at_nan == when else ()
    if scaled and op == "JumpRelu":
        notes += (MINUS_INF,)
    if scaled or np.any(np.signbit(const_array(other) if const_array(other) is not None else 0.0)):
        notes += (ZERO_SIGN,)
    return Form(op, x, keeps.t, None, notes, keeps.strict)


def _where_soft(node: ir.Node, keep: ir.Value, other: ir.Value, when: bool) -> Result:
    form = minus(keep)
    if form is None:
        return None
    x, t = form
    keeps = condition(node.inputs[0], x)
    if keeps is None or keeps.inverted == when:
        return None
    scaled = _times_zero(other, x)
    zero = scaled or is_zeros(other, x)
    notes = () if scaled or keeps.at_nan == when else (NAN_KEPT,)
    if scaled:
        notes += (ZERO_SIGN,)
    if keeps.kind == "abs" and zero and (size := _signed(t.value, x)) is not None:
        if not keeps.t.same(size):
            return Refusal("compares with another number than it subtracts", x)
        return Form("SoftThreshold", x, size, None, notes)
    kind, size = ("above", t) if keeps.kind == "above" else ("below", -t)
    if keeps.kind != kind:
        return None
    if zero and kind == "above":
        if not keeps.t.same(size):
            return Refusal("compares with another number than it subtracts", x)
        if scaled:
            notes += (MINUS_INF,)
        return Form("ShiftedRelu", x, size, None, notes)
    mirrored = leg(producer(other, "Where"), "below" if kind == "above" else "above")
    if mirrored is None or mirrored[0] is not x or not keeps.t.same(size):
        return None
    if not mirrored[1].same(size):
        return Refusal("the positive and the negative side have different thresholds", x)
    return Form("SoftThreshold", x, size, None, notes)


def _signed(value: ir.Value | None, x: ir.Value) -> Threshold | None:
    """t where ``value`` is Sign(x) * t."""
    node = producer(value, "Mul")
    for a, b in (node.inputs, node.inputs[::-1]) if node is not None else ():
        if is_sign_of(a, x):
            return Threshold.of(b)
    return None


def _times_zero(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether ``value`` is x * 0, which torch writes to let NaN through."""
    node = producer(value, "Mul")
    pairs = (node.inputs, node.inputs[::-1]) if node is not None else ()
    return any(a is x and const_array(b) is not None and np.all(const_array(b) == 0) for a, b in pairs)
