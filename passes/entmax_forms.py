"""The pieces of entmax read off a graph, as the entmax package finds tau: by sorting, by halving.

Sorting, for alpha 1.5, with S the slice z in descending order, C(.) running sums and R = 1, 2, ... n:

    mean M     C(S) / R
    spread     R * (C(S^2) / R - M^2)
    tau        M - sqrt(max((1 - spread) / R, 0)), gathered at the number of tau <= S, less 1

Halving, for every alpha, with a = alpha - 1, t(0) = a max(x) - 1 and d(0) = (a max(x) - n^-a) - t(0):

    d(i + 1)   d(i) / 2
    t(i + 1)   t(i) + d(i + 1) where the slice still sums to 1 there, else t(i)
    p          max(a x - (t(i) + d(i + 1)), 0)^(1 / a) of the last i

Every function either gives the piece or raises Miss with the reason, or gives None where the graph is
something else altogether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sparsec.passes.fold import fold
from sparsec.passes.graph import attribute, broadcasts_into, const_scalar, dims, producer
from sparsec.passes.sparsemax_forms import (
    Miss,
    Stage,
    is_cumsum,
    is_ranks,
    minus_one,
    reduced,
    scalar,
    sort_stage,
    through,
)
from sparsec.passes.threshold_forms import clamp

#: Halvings that give float32 its last digits; entmax's own advice.
ENOUGH = 24


def positive_part(value: ir.Value | None) -> ir.Value | None:
    """v where ``value`` is max(v, 0)."""
    bounds = clamp(value)
    return bounds.inner if bounds is not None and bounds.low_is_zero and bounds.high is None else None


def square_root(value: ir.Value | None) -> ir.Value | None:
    """v where ``value`` is v^2."""
    node = producer(value, "Pow", "Mul")
    if node is None:
        return None
    a, b = node.inputs
    squares = scalar(b) == 2 if node.op_type == "Pow" else a is b
    return a if squares else None


def half(value: ir.Value | None) -> ir.Value | None:
    """v where ``value`` is v / 2."""
    node = producer(value, "Div", "Mul")
    if node is None:
        return None
    a, b = node.inputs
    if scalar(b) == (2 if node.op_type == "Div" else 0.5):
        return a
    return b if node.op_type == "Mul" and scalar(a) == 0.5 else None


# ---- sorting ------------------------------------------------------------------------------------------


def root_stage(
    value: ir.Value | None, shapes: Mapping[ir.Value, Sequence[int]] | None = None
) -> Stage | None:
    """The stage whose threshold ``value`` is."""
    gather = producer(value, "GatherElements")
    candidates = producer(gather.inputs[0], "Sub") if gather is not None else None
    if candidates is None:
        return None
    mean, root = candidates.inputs
    means, root = producer(mean, "Div"), producer(root, "Sqrt")
    sums = producer(means.inputs[0], "CumSum") if means is not None else None
    stage = sort_stage(sums.inputs[0], shapes or {}) if sums is not None and root is not None else None
    if stage is None:
        return None
    stage.along(attribute(gather, "axis", 0), "GatherElements")
    if not is_cumsum(means.inputs[0], stage) or not is_ranks(means.inputs[1], stage):
        raise Miss("the mean of the largest is not their sum / their number")
    under = positive_part(root.inputs[0])
    if under is None:
        raise Miss("the root is not taken of max(., 0)")
    if not _is_rest(under, mean, stage):
        raise Miss("the root is not taken of (1 - spread of the support) / size of the support")
    size = through(minus_one(gather.inputs[1]), "Cast")
    if size is None or not _counts(size, gather.inputs[0], stage):
        raise Miss("tau is not gathered at the number of tau <= z, less 1")
    stage.size = size
    return stage


def _is_rest(value: ir.Value, mean: ir.Value, stage: Stage) -> bool:
    """Whether ``value`` is (1 - R * (C(S^2) / R - M^2)) / R."""
    over = producer(value, "Div")
    rest = producer(over.inputs[0], "Sub") if over is not None else None
    if rest is None or scalar(rest.inputs[0]) != 1 or not is_ranks(over.inputs[1], stage):
        return False
    spread = producer(rest.inputs[1], "Mul")
    for ranks, variance in (spread.inputs, spread.inputs[::-1]) if spread is not None else ():
        step = producer(variance, "Sub")
        if step is None or not is_ranks(ranks, stage):
            continue
        squares = producer(step.inputs[0], "Div")
        return (
            squares is not None
            and is_cumsum(squares.inputs[0], stage, lambda terms, s: square_root(terms) is s)
            and is_ranks(squares.inputs[1], stage)
            and square_root(step.inputs[1]) is mean
        )
    return False


def _counts(size: ir.Value, candidates: ir.Value, stage: Stage) -> bool:
    cast = producer(reduced(size, stage, "ReduceSum"), "Cast", "CastLike")
    node = producer(cast.inputs[0], "LessOrEqual", "GreaterOrEqual") if cast is not None else None
    if node is None:
        return False
    low, high = node.inputs if node.op_type == "LessOrEqual" else node.inputs[::-1]
    return low is candidates and high is stage.sorted


# ---- halving ------------------------------------------------------------------------------------------


@dataclass
class Halved:
    """``shares`` of ``x`` at thresholds found by halving ``count`` times."""

    x: ir.Value
    rest: float
    axis: int
    count: int


@dataclass
class _Shares:
    """max(``scaled`` - ``tau``, 0) ^ ``power``, or without a power."""

    scaled: ir.Value
    tau: ir.Value
    power: ir.Value | None

    @classmethod
    def of(cls, value: ir.Value | None) -> _Shares | None:
        node = producer(value, "Pow")
        inner, power = (value, None) if node is None else node.inputs
        step = producer(positive_part(inner), "Sub")
        return cls(*step.inputs, power) if step is not None else None

    @property
    def exponent(self) -> float | None:
        return 1.0 if self.power is None else _uniform(self.power, self.scaled)

    def like(self, other: _Shares) -> bool:
        return self.scaled is other.scaled and self.exponent == other.exponent


def halved(value: ir.Value | None) -> Halved | None:
    """The halving whose last shares are ``value``; None where ``value`` is nothing of the kind."""
    shares = _Shares.of(value)
    split = _split(shares.tau) if shares is not None else None
    if split is None or producer(split[0], "Where") is None:
        return None
    axes: set[int] = set()
    count = 1
    while (where := producer(split[0], "Where")) is not None:
        low, width = split
        condition, middle, before = where.inputs
        tested = _tested(condition, axes)
        if tested is None or tested.tau is not middle or not tested.like(shares):
            raise Miss("which half is taken does not depend on whether the shares sum to 1")
        if not _is_sum(middle, before, width):
            raise Miss("a threshold is not that before it plus half of the last width")
        split, count = _split(middle), count + 1
        if split is None:
            raise Miss("a threshold is not that before it plus half of the last width")
    low, width = split
    x, rest = _scaled(shares.scaled)
    top = _start(low, width, rest, x, shares.scaled, axes)
    if len(axes) != 1:
        raise Miss("the axes of the sums and of the maximum differ")
    if top is None or shares.exponent is None or abs(shares.exponent * rest - 1) > 1e-4:
        raise Miss("the interval that is halved is not [a max - 1, a max - n^-a], or the power is not 1 / a")
    return Halved(x, rest, axes.pop(), count)


def _uniform(value: ir.Value | None, x: ir.Value) -> float | None:
    """The number that every element of the constant ``value`` is, which leaves the shape of ``x`` alone."""
    array = fold(value)
    if array is None or not array.size or not broadcasts_into(array.shape, x):
        return None
    if array.min() != array.max():
        raise Miss("alpha differs between slices; one number is required")
    return float(array.flat[0])


def _split(tau: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """``(low, width)`` where ``tau`` is low + width / 2."""
    node = producer(tau, "Add")
    for low, step in (node.inputs, node.inputs[::-1]) if node is not None else ():
        if (width := half(step)) is not None:
            return low, width
    return None


def _is_sum(value: ir.Value, a: ir.Value, b: ir.Value) -> bool:
    node = producer(value, "Add")
    return node is not None and {id(v) for v in node.inputs} == {id(a), id(b)}


def _tested(condition: ir.Value, axes: set[int]) -> _Shares | None:
    """The shares whose sum ``condition`` finds to be at least 1."""
    kept = _kept(condition, axes)
    node = producer(kept, "GreaterOrEqual")
    if node is None:
        return None
    total, bound = node.inputs
    wanted = 1
    if const_scalar(bound) == 0:
        total, wanted = minus_one(total), 0
    if const_scalar(bound) != wanted:
        return None
    return _Shares.of(summed(total, axes, keeps=kept is condition))


def _kept(value: ir.Value, axes: set[int]) -> ir.Value:
    """``value`` before the Unsqueeze that keeps an axis."""
    node = producer(value, "Unsqueeze")
    if node is None:
        return value
    axes.add(_from_end(scalar(node.inputs[1]), value))
    return node.inputs[0]


def summed(value: ir.Value | None, axes: set[int], keeps: bool = True) -> ir.Value | None:
    """v where ``value`` is the sum of v along one axis, put into ``axes``, which stays where ``keeps``."""
    if value is None:
        return None
    inner = _kept(value, axes)
    node = producer(inner, "ReduceSum")
    if node is None or bool(attribute(node, "keepdims", 1)) != (keeps and inner is value):
        return None
    axes.add(_from_end(scalar(node.inputs[1] if len(node.inputs) > 1 else None), node.inputs[0]))
    return node.inputs[0]


def _from_end(axis: float | int | None, value: ir.Value) -> int:
    shape = dims(value)
    if axis is None or shape is None:
        raise Miss("an axis is not a constant, or the rank is not known")
    return int(axis) % len(shape) - len(shape)


def _scaled(value: ir.Value) -> tuple[ir.Value, float]:
    """``(x, a)`` where ``value`` is a x."""
    node = producer(value, "Mul")
    for x, factor in (node.inputs, node.inputs[::-1]) if node is not None else ():
        if (rest := _uniform(factor, x)) is not None:
            return x, rest
    return value, 1.0


def _start(low, width, rest: float, x: ir.Value, scaled: ir.Value, axes: set[int]) -> ir.Value | None:
    """The maximum, scaled, where ``low`` is 1 below it and ``low + width`` n^-rest below it."""
    first, span = producer(low, "Sub"), producer(width, "Sub")
    last = producer(span.inputs[0], "Sub") if span is not None and span.inputs[1] is low else None
    if first is None or last is None or first.inputs[0] is not last.inputs[0]:
        return None
    top = first.inputs[0]
    of, factor = (scaled, 1.0) if producer(top, "ReduceMax") else (x, rest)
    node = producer(_scaled(top)[0], "ReduceMax")
    if node is None or node.inputs[0] is not of or _scaled(top)[1] != factor:
        return None
    if not attribute(node, "keepdims", 1):
        return None
    axis = _from_end(scalar(node.inputs[1] if len(node.inputs) > 1 else None), x)
    axes.add(axis)
    n = dims(x)[axis]
    if not isinstance(n, int):
        raise Miss(f"the length of axis {axis} is not known; freeze the shape")
    bounds = [_uniform(step.inputs[1], top) for step in (first, last)]
    fits = None not in bounds and bounds[0] == 1 and abs(bounds[1] - n**-rest) < 1e-5
    return top if fits else None
