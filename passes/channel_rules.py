"""How channels go through an operator: which of its other values have them, and where.

A rule is `(node, index, at) -> (other index, at there)...`: the channels are known at one input, or at
`OUTPUT`, and it tells every other input and the output that must be permuted along. An operand that it does
not name is the same for all channels. Row-major memory makes one rule of all reshapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sparsec.passes.graph import attribute, const_array, dims
from sparsec.passes.ops import threshold

OUTPUT = -1
"""Stands for a node's output where others have the index of an input."""


@dataclass(frozen=True)
class At:
    """Channel c is at `c * inner ... (c + 1) * inner - 1` of the row-major index over `axes`."""

    axes: tuple[int, ...]
    inner: int = 1


class Refusal(Exception):
    """Why channels cannot be followed further; said after the node's name."""


Ties = Iterator[tuple[int, At]]


def sizes_of(value: ir.Value | None) -> tuple[int | str | None, ...]:
    found = dims(value)
    if found is None:
        raise Refusal("has an operand of unknown shape")
    return found


def _elementwise(node: ir.Node, index: int, at: At) -> Ties:
    """With broadcasting: every operand has them, or is the same for all of them."""
    own = node.outputs[0] if index == OUTPUT else node.inputs[index]
    rank = max(len(sizes_of(v)) for v in (*node.inputs, node.outputs[0]) if v is not None)
    sizes = {axis + rank - len(sizes_of(own)): sizes_of(own)[axis] for axis in at.axes}
    for other in (OUTPUT, *range(len(node.inputs))):
        value = node.outputs[0] if other == OUTPUT else node.inputs[other]
        if other == index or value is None:
            continue
        shape = sizes_of(value)
        shift = rank - len(shape)
        has = [shape[axis - shift] if axis >= shift else 1 for axis in sizes]
        if has == list(sizes.values()):
            yield other, At(tuple(axis - shift for axis in sizes), at.inner)
        elif any(size != 1 for size in has):
            raise Refusal("joins them with something that only some of them share")


def _same(node: ir.Node, index: int, at: At) -> Ties:
    """Spatial operators: channels along axis 1, each by itself."""
    if at.axes != (1,):
        raise Refusal("reads them along another axis")
    if index <= 0:
        yield (OUTPUT if index == 0 else 0), at


def _along(node: ir.Node, index: int, at: At) -> Ties:
    """Softmax and its like: the sum over an axis has no order; that over heads would mix different ones."""
    axis = attribute(node, "axis", -1) % len(sizes_of(node.outputs[0]))
    if axis in at.axes[:-1]:
        raise Refusal("mixes heads")
    yield (OUTPUT if index == 0 else 0), at


def _reduce(node: ir.Node, index: int, at: At) -> Ties:
    if attribute(node, "noop_with_empty_axes", 0):
        raise Refusal("may reduce nothing")
    rank = len(sizes_of(node.inputs[0]))
    given = attribute(node, "axes")
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        given = const_array(node.inputs[1])
        if given is None:
            raise Refusal("has axes that are computed")
    gone = set(range(rank)) if given is None or not len(given) else {int(a) % rank for a in given}
    stay = list(range(rank)) if attribute(node, "keepdims", 1) else [a for a in range(rank) if a not in gone]
    if index == OUTPUT:
        yield 0, At(tuple(stay[axis] for axis in at.axes), at.inner)
    elif gone.isdisjoint(at.axes):
        yield OUTPUT, At(tuple(stay.index(axis) for axis in at.axes), at.inner)
    elif at.axes[-1] not in gone or (
        len(at.axes) > 1 and gone & set(at.axes[:-1]) and not gone >= set(at.axes)
    ):
        raise Refusal("mixes heads")


def _layer_norm(node: ir.Node, index: int, at: At) -> Ties:
    rank = len(sizes_of(node.inputs[0]))
    first = attribute(node, "axis", -1) % rank
    inside = [axis >= first for axis in at.axes]
    if index > 0 or (any(inside) and not all(inside)):
        raise Refusal("normalises over a part of them")
    yield (OUTPUT if index == 0 else 0), at
    if all(inside):
        for other in range(1, len(node.inputs)):
            if node.inputs[other] is not None:
                yield other, At(tuple(axis - first for axis in at.axes), at.inner)


def _batch_norm(node: ir.Node, index: int, at: At) -> Ties:
    if index > 0 or at.axes != (1,):
        raise Refusal("reads them along another axis")
    yield (OUTPUT if index == 0 else 0), at
    for other in range(1, len(node.inputs)):
        yield other, At((0,), at.inner)


def _transpose(node: ir.Node, index: int, at: At) -> Ties:
    perm = attribute(node, "perm") or tuple(reversed(range(len(sizes_of(node.inputs[0])))))
    if index == OUTPUT:
        yield 0, At(tuple(perm[axis] for axis in at.axes), at.inner)
    else:
        yield OUTPUT, At(tuple(list(perm).index(axis) for axis in at.axes), at.inner)


def _reshape(node: ir.Node, index: int, at: At) -> Ties:
    """Row-major memory: what `math.prod` of the trailing sizes says is one place on both sides."""
    if index > 0:
        raise Refusal("takes a shape from them")
    own, other = (node.inputs[0], node.outputs[0])[:: -1 if index == OUTPUT else 1]
    have, want = sizes_of(own), sizes_of(other)
    first, last = at.axes[0], at.axes[-1]
    tail = have[first:]
    if at.axes != tuple(range(first, last + 1)) or not all(isinstance(size, int) for size in tail):
        raise Refusal("takes them apart")
    channels = math.prod(have[first : last + 1]) // at.inner
    axis = len(want)
    total = 1
    while axis > 0 and isinstance(want[axis - 1], int) and total < math.prod(tail):
        axis -= 1
        total *= want[axis]
    if total != math.prod(tail):
        raise Refusal("takes them apart")
    axes, left, inner = [], channels, 1
    while left > 1:
        size = want[axis]
        if left % size and size % left:
            raise Refusal("takes them apart")
        axes.append(axis)
        inner, left, axis = max(size // left, 1), max(left // size, 1), axis + 1
    if not axes:
        raise Refusal("has one channel only")
    yield (0 if index == OUTPUT else OUTPUT), At(tuple(axes), inner)


def _matmul(node: ir.Node, index: int, at: At) -> Ties:
    """A product of two activations, its batch axes the same on both sides where channels lie in heads."""
    ranks = [len(sizes_of(v)) for v in (*node.inputs, node.outputs[0])]
    rank, (*heads, last) = ranks[0], at.axes
    if len(set(ranks)) > 1 or last < rank - 2 or any(axis >= rank - 2 for axis in heads):
        raise Refusal("reads them along another axis")
    row, column = At((*heads, rank - 2), at.inner), At((*heads, rank - 1), at.inner)
    if index == OUTPUT:
        yield (0, row) if last == rank - 2 else (1, column)
    elif index == 0:
        yield (OUTPUT, row) if last == rank - 2 else (1, row)
    else:
        yield (0, column) if last == rank - 2 else (OUTPUT, column)


def _gather(node: ir.Node, index: int, at: At) -> Ties:
    """A table of constants, read by rows."""
    table, rank = const_array(node.inputs[0]), len(sizes_of(node.outputs[0]))
    if index != OUTPUT or table is None or table.ndim != 2 or attribute(node, "axis", 0) != 0:
        raise Refusal("is not followed")
    if at.axes != (rank - 1,) or len(node.inputs[0].uses()) > 1:
        raise Refusal("reads them from a table that others read too")
    yield 0, At((1,), at.inner)


def _concat(node: ir.Node, index: int, at: At) -> Ties:
    if attribute(node, "axis") % len(sizes_of(node.outputs[0])) in at.axes:
        raise Refusal("puts them together with others")
    for other in (OUTPUT, *range(len(node.inputs))):
        if other != index:
            yield other, at


# fmt: off
ELEMENTWISE = (
    "Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "PRelu", "Pow", "Reciprocal",
    "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Tanh", "ThresholdedRelu", "Where",
)
REDUCE = (
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)
# fmt: on

Rule = Callable[[ir.Node, int, At], Ties]
RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"), _same),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LpNormalization"), _along),
    **dict.fromkeys(REDUCE, _reduce),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _batch_norm,
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "MatMul": _matmul,
    "Gather": _gather,
    "Concat": _concat,
}
SPARSEC_RULES: dict[str, Rule] = dict.fromkeys((op.name for op in threshold.OPS), _elementwise)
