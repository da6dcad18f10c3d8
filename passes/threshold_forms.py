"""The pieces that threshold forms are made of, read off a graph: x - t, |x| > t, clamping, zeros.

Each function takes a value and gives what it is, or None.  All rewrites used here are exact in floating
point: x + (-t) is x - t, -(x + t) is -x - t, and min/max with constants compose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import const_array, producer


@dataclass(frozen=True, eq=False)
class Threshold:
    """A threshold as the graph has it: ``value`` or its negation; ``array`` is None unless constant."""

    value: ir.Value | None
    array: np.ndarray | None
    negated: bool = False

    @classmethod
    def of(cls, value: ir.Value) -> Threshold:
        return cls(value, const_array(value))

    def __neg__(self) -> Threshold:
        return Threshold(self.value, None if self.array is None else -self.array, not self.negated)

    def same(self, other: Threshold) -> bool:
        """Whether both are certainly the same number everywhere."""
        if self.array is None or other.array is None:
            return self.value is other.value and self.negated == other.negated
        try:
            return bool(np.all(self.array == other.array))
        except ValueError:  # shapes that do not broadcast
            return False


NAN_KEPT = "a NaN stays NaN where it became 0"
NAN_LOST = "a NaN becomes 0 where it stayed NaN"
MINUS_INF = "-inf becomes 0 where it became NaN"
INFINITY = "an infinity stays one where Clip made it the largest finite number"
ZERO_SIGN = "a zero may differ in sign"


@dataclass(frozen=True, eq=False)
class Form:
    """A recognised form; not ``strict`` where it keeps |x| == tau; notes say what differs off numbers."""

    op: str
    x: ir.Value
    tau: Threshold
    m: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    strict: bool = True


@dataclass(frozen=True, eq=False)
class Refusal:
    """Why something that looks like a threshold on ``x`` is none; ``tau`` bounds the pattern.

    Its parts are not looked at again unless ``inner_may_match``.
    """

    reason: str
    x: ir.Value
    inner_may_match: bool = False
    tau: ir.Value | None = None


Result = Form | Refusal | None


@dataclass(frozen=True, eq=False)
class Condition:
    """``|x| > t`` (abs), ``x > t`` (above) or ``x < -t`` (below), ``>=`` unless strict.

    ``inverted``: the graph has the opposite.  ``at_nan``: what the graph's own condition says for NaN.
    """

    kind: str
    t: Threshold
    strict: bool
    inverted: bool = False
    at_nan: bool = False


def is_zeros(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether every element of ``value`` is 0 (of either sign): a constant, or ConstantOfShape like x."""
    array = const_array(value)
    if array is not None:
        return bool(np.all(array == 0))
    node = producer(value, "ConstantOfShape")
    shape = producer(node.inputs[0], "Shape") if node is not None else None
    if shape is None or shape.inputs[0] is not x or len(shape.attributes):
        return False
    return "value" not in node.attributes or not node.attributes["value"].as_tensor().numpy().any()


def minus(value: ir.Value | None) -> tuple[ir.Value, Threshold] | None:
    """(x, t) where ``value`` is x - t: Sub(x, t), or Add with a constant -t on either side."""
    node = producer(value, "Sub", "Add")
    if node is None:
        return None
    a, b = node.inputs
    if node.op_type == "Sub":
        return None if const_array(a) is not None else (a, Threshold.of(b))
    for x, c in ((a, b), (b, a)):
        if const_array(c) is not None and const_array(x) is None:
            return x, -Threshold.of(c)
    return None


def negation(value: ir.Value | None) -> ir.Value | None:
    """x where ``value`` is -x: Neg, or Mul by -1."""
    node = producer(value, "Neg", "Mul")
    if node is None:
        return None
    if node.op_type == "Neg":
        return node.inputs[0]
    for x, c in (node.inputs, node.inputs[::-1]):
        array = const_array(c)
        if array is not None and array.size == 1 and array.item() == -1:
            return x
    return None


def minus_negated(value: ir.Value | None) -> tuple[ir.Value, Threshold] | None:
    """(x, t) where ``value`` is -x - t: Sub(Neg(x), t), Neg(Add(x, t)), Sub(-t, x) and the like."""
    if (form := minus(value)) is not None and (x := negation(form[0])) is not None:
        return x, form[1]
    if (inner := negation(value)) is not None and (form := minus(inner)) is not None:
        return form[0], -form[1]
    node = producer(value, "Sub")
    if node is not None and const_array(node.inputs[0]) is not None:
        return node.inputs[1], -Threshold.of(node.inputs[0])
    return None


def is_abs_of(value: ir.Value | None, x: ir.Value) -> bool:
    node = producer(value, "Abs")
    return node is not None and node.inputs[0] is x


def is_sign_of(value: ir.Value | None, x: ir.Value) -> bool:
    node = producer(value, "Sign")
    return node is not None and node.inputs[0] is x


@dataclass(frozen=True, eq=False)
class Clamp:
    """``inner`` held to [low, high] by a chain of Relu, Clip, Min and Max with constants; None: no bound.

    ``open_clip``: a Clip without upper bound is among them, which by ONNX's definition ends at the largest
    finite number.
    """

    inner: ir.Value
    low: np.ndarray | None
    high: np.ndarray | None
    open_clip: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        return (INFINITY,) if self.open_clip and self.high is None else ()

    @property
    def low_is_zero(self) -> bool:
        return self.low is not None and bool(np.all(self.low == 0))


def clamp(value: ir.Value | None) -> Clamp | None:
    """The longest chain of clamping steps that ends in ``value``, as one interval.

    Two steps are one only where the intervals overlap; a chain with an empty intersection gives None.
    """
    first = _clamp_step(value)
    if first is None:
        return None
    while (step := _clamp_step(first.inner)) is not None:
        low = _tighter(np.maximum, first.low, step.low)
        high = _tighter(np.minimum, first.high, step.high)
        first = Clamp(step.inner, low, high, first.open_clip or step.open_clip)
    if first.low is not None and first.high is not None and not np.all(first.low <= first.high):
        return None
    return first


def _tighter(pick: np.ufunc, a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else pick(a, b)


def _clamp_step(value: ir.Value | None) -> Clamp | None:
    node = producer(value, "Relu", "Clip", "Min", "Max")
    if node is None:
        return None
    if node.op_type == "Relu":
        return Clamp(node.inputs[0], np.zeros(()), None)
    if node.op_type == "Clip":
        low, high = ((*node.inputs, None, None))[1:3]
        bounds = [None if v is None else const_array(v) for v in (low, high)]
        if (low is not None and bounds[0] is None) or (high is not None and bounds[1] is None):
            return None
        return Clamp(node.inputs[0], *bounds, open_clip=high is None)
    if len(node.inputs) != 2:
        return None
    for x, c in (node.inputs, node.inputs[::-1]):
        array = const_array(c)
        if array is not None and const_array(x) is None:
            return Clamp(x, array, None) if node.op_type == "Max" else Clamp(x, None, array)
    return None


_MIRROR = {
    "Greater": "Less",
    "Less": "Greater",
    "GreaterOrEqual": "LessOrEqual",
    "LessOrEqual": "GreaterOrEqual",
}


def condition(value: ir.Value | None, x: ir.Value) -> Condition | None:
    """What ``value``, a tensor of booleans, says about ``x``, if it compares x or |x| with a threshold."""
    node = producer(value, "Cast", "Not", "Or", "And", *_MIRROR)
    if node is None:
        return None
    if node.op_type == "Cast":  # torch's TorchScript exporter casts bool to bool
        to_bool = node.attributes["to"].as_int() == ir.DataType.BOOL
        return condition(node.inputs[0], x) if to_bool else None
    if node.op_type == "Not":
        inner = condition(node.inputs[0], x)
        return inner and replace(inner, inverted=not inner.inverted, at_nan=not inner.at_nan)
    if node.op_type in ("Or", "And"):
        return _both_sides(node, x)
    a, b, op = *node.inputs, node.op_type
    if b is x or is_abs_of(b, x):
        a, b, op = b, a, _MIRROR[op]
    t = Threshold.of(b)
    strict = op in ("Greater", "LessOrEqual")  # LessOrEqual is the opposite of the strict Greater
    if is_abs_of(a, x):
        return Condition("abs", t, strict, inverted=op.startswith("Less"))
    if a is not x:
        return None
    # x < c with c <= 0 is the lower side of a two-sided threshold, x < c with c > 0 the opposite of x > c
    if op.startswith("Less") and t.array is not None and np.all(t.array <= 0):
        return Condition("below", -t, op == "Less")
    return Condition("above", t, strict, inverted=op.startswith("Less"))


def _both_sides(node: ir.Node, x: ir.Value) -> Condition | None:
    """x > t or x < -t is |x| > t; x <= t and x >= -t is its opposite."""
    sides = [_side(v, x) for v in node.inputs]
    if None in sides:
        return None
    by_direction = {op[0]: (op, t) for op, t in sides}
    if set(by_direction) != {"G", "L"}:
        return None
    (up, t), (down, minus_t) = by_direction["G"], by_direction["L"]
    if up.endswith("OrEqual") != down.endswith("OrEqual"):
        return None
    inclusive = up.endswith("OrEqual")
    if node.op_type == "Or":
        return Condition("abs", t, strict=not inclusive) if t.same(-minus_t) else None
    return Condition("abs", minus_t, strict=inclusive, inverted=True) if minus_t.same(-t) else None


def _side(value: ir.Value | None, x: ir.Value) -> tuple[str, Threshold] | None:
    """(comparison, c) where ``value`` is ``x comparison c``."""
    node = producer(value, "Cast", *_MIRROR)
    if node is not None and node.op_type == "Cast":
        return _side(node.inputs[0], x) if node.attributes["to"].as_int() == ir.DataType.BOOL else None
    if node is None or x not in node.inputs:
        return None
    a, b = node.inputs
    return (node.op_type, Threshold.of(b)) if a is x else (_MIRROR[node.op_type], Threshold.of(a))


def as_above(c: Condition) -> Condition:
    """x < c with c <= 0, read as the opposite of x >= c."""
    if c.kind != "below":
        return c
    return Condition("above", -c.t, not c.strict, not c.inverted, c.at_nan)


def show(bound: np.ndarray | None) -> str:
    return "none" if bound is None else f"{bound.item():.6g}" if bound.size == 1 else "per channel"
