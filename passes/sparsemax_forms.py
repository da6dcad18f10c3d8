"""The pieces of sparsemax read off a graph: the sorted slice, its support, its threshold tau.

With S the slice sorted in descending order, C its running sums and R = 1, 2, ... n:

    support   R*S > C - 1,  1 + R*S > C,  and either side of both with Less
    size      ReduceSum(support),  ReduceMax(support * R)
    tau       GatherElements(C - 1, size - 1) / size,  (GatherElements(C, size - 1) - 1) / size,
              (ReduceSum(support * S) - 1) / size

Every function either gives the piece or raises Miss with the reason, or gives None where the graph is
something else altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsec.passes.fold import fold
from sparsec.passes.graph import FLOATS, attribute, producer

SLICE_NAN = "a -inf gets 0 where 0 * -inf made the whole slice NaN"
NO_SHIFT = "the maximum is subtracted first here, so the last digits may differ"
ROUNDING = "its sums are taken in another order, so the last digits may differ"


class Miss(Exception):
    """Looks like sparsemax and is not; the text is the finding's reason.  Never leaves the matcher."""


@dataclass
class Stage:
    """One computation of tau: slices of ``z`` along ``axis`` (counted from the end), top ``k`` of ``n``."""

    z: ir.Value
    rank: int
    axis: int
    n: int
    k: int
    sorted: ir.Value
    shape: tuple[int | str | None, ...]
    size: ir.Value | None = None
    notes: set[str] = field(default_factory=set)
    shapes: Mapping[ir.Value, Sequence[int]] = field(default_factory=dict)

    def along(self, axis: int | None, what: str) -> None:
        if axis is None or not -self.rank <= axis < self.rank:
            raise Miss(f"the axis of {what} is not a constant")
        if axis % self.rank - self.rank != self.axis:
            mine = f"{what} along {axis % self.rank - self.rank}"
            raise Miss(f"the axes differ: TopK sorts along {self.axis}, {mine} (counted from the end)")


def scalar(value: ir.Value | None, shapes: Mapping | None = None) -> float | int | None:
    array = fold(value, shapes)
    small = array is not None and array.size == 1 and array.ndim <= 1  # a higher rank could widen the result
    return array.reshape(()).item() if small else None


def plus_one(value: ir.Value | None) -> ir.Value | None:
    """v where ``value`` is v + 1."""
    node = producer(value, "Add", "Sub")
    if node is None:
        return None
    a, b = node.inputs
    if scalar(b) == (1 if node.op_type == "Add" else -1):
        return a
    return b if node.op_type == "Add" and scalar(a) == 1 else None


def minus_one(value: ir.Value | None) -> ir.Value | None:
    """v where ``value`` is v - 1."""
    node = producer(value, "Sub", "Add")
    if node is None:
        return None
    a, b = node.inputs
    if scalar(b) == (1 if node.op_type == "Sub" else -1):
        return a
    return b if node.op_type == "Add" and scalar(a) == -1 else None


def through(value: ir.Value | None, *op_types: str) -> ir.Value | None:
    """``value`` without the steps of ``op_types`` that made it."""
    while (node := producer(value, *op_types)) is not None:
        value = node.inputs[0]
    return value


def sort_stage(value: ir.Value | None, shapes: Mapping[ir.Value, Sequence[int]]) -> Stage | None:
    """The stage whose sorted slice is ``value``, output 0 of a TopK."""
    node = producer(value, "TopK")
    if node is None or value is not node.outputs[0]:
        return None
    z = node.inputs[0]
    shape = shapes.get(z) or (None if z.shape is None else tuple(z.shape))
    if shape is None:
        raise Miss("the rank of the input is not known; run shape inference")
    rank, axis = len(shape), attribute(node, "axis", -1)
    n, k = shape[axis], scalar(node.inputs[1], shapes)
    if not isinstance(n, int):
        raise Miss(f"the length of axis {axis % rank - rank} is not known; freeze the shape")
    if k is None:
        raise Miss("the k of TopK is not a constant")
    if attribute(node, "largest", 1) != 1 or attribute(node, "sorted", 1) != 1:
        raise Miss("TopK does not sort in descending order")
    return Stage(z, rank, axis % rank - rank, n, int(k), value, tuple(shape), shapes=shapes)


def is_cumsum(value: ir.Value | None, stage: Stage, of: Callable = lambda terms, base: terms is base) -> bool:
    """Whether ``value`` are the running sums of what ``of(terms, sorted slice)`` holds for."""
    node = producer(value, "CumSum")
    if node is None or not of(node.inputs[0], stage.sorted):
        return False
    stage.along(scalar(node.inputs[1]), "CumSum")
    if attribute(node, "exclusive", 0) or attribute(node, "reverse", 0):
        raise Miss("CumSum is exclusive or reversed; plain running sums are required")
    return True


def is_ranks(value: ir.Value | None, stage: Stage) -> bool:
    """Whether ``value`` is 1, 2, ... k along the axis; Miss when it is a constant of another kind."""
    array = fold(value, stage.shapes)
    if array is None:
        return False
    shape = [1] * stage.rank
    shape[stage.axis] = stage.k
    wanted = np.arange(1, stage.k + 1).reshape(shape)
    full = [d if isinstance(d, int) else 1 for d in stage.shape]
    full[stage.axis] = stage.k
    fits = array.ndim <= stage.rank and all(
        d in (1, f) for d, f in zip(reversed(array.shape), reversed(full), strict=False)
    )
    if not fits or not np.array_equal(np.broadcast_to(array, full), np.broadcast_to(wanted, full)):
        raise Miss(f"the ranks of the sorted values are not 1, 2, ... {stage.k} along axis {stage.axis}")
    return True


def is_support(value: ir.Value | None, stage: Stage) -> bool:
    node = producer(value, "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
    if node is None:
        return False
    big, small = node.inputs if node.op_type.startswith("Greater") else node.inputs[::-1]
    bound = plus_one(big)
    if bound is not None:
        fits = is_cumsum(small, stage)
        stage.notes.add(ROUNDING)
    else:
        bound, fits = big, is_cumsum(minus_one(small), stage)
    product = producer(bound, "Mul")
    if not fits or product is None:
        return False
    a, b = product.inputs
    if stage.sorted not in (a, b) or not is_ranks(b if a is stage.sorted else a, stage):
        return False
    if node.op_type.endswith("OrEqual"):
        raise Miss("the support is found with >=; > is required")
    return True


def masked(value: ir.Value | None, stage: Stage) -> ir.Value | None:
    """v where ``value`` is support * v."""
    node = producer(value, "Mul")
    for a, b in (node.inputs, node.inputs[::-1]) if node is not None else ():
        cast = producer(a, "Cast", "CastLike")
        if cast is not None and is_support(cast.inputs[0], stage):
            return b
    return None


def reduced(value: ir.Value | None, stage: Stage, op_type: str) -> ir.Value | None:
    """The input of a reduction along the stage's axis that keeps it (by itself or by Unsqueeze), or None."""
    unsqueeze = producer(value, "Unsqueeze")
    if unsqueeze is not None:
        stage.along(scalar(unsqueeze.inputs[1]), "Unsqueeze")
        value = unsqueeze.inputs[0]
    node = producer(value, op_type)
    if node is None:
        return None
    stage.along(scalar(node.inputs[1] if len(node.inputs) > 1 else None), op_type)
    if bool(attribute(node, "keepdims", 1)) == (unsqueeze is not None):
        raise Miss(f"{op_type} does not keep its axis")
    return node.inputs[0]


def is_size(value: ir.Value | None, stage: Stage) -> bool:
    """Whether ``value`` counts the support."""
    counted = reduced(value, stage, "ReduceSum")
    if counted is not None:
        cast = producer(counted, "Cast", "CastLike")
        return cast is not None and is_support(cast.inputs[0], stage)
    highest = masked(reduced(value, stage, "ReduceMax"), stage)
    return highest is not None and is_ranks(highest, stage)


def tau_stage(value: ir.Value | None, shapes: Mapping[ir.Value, Sequence[int]] | None = None) -> Stage | None:
    """The stage whose threshold is ``value``."""
    node = producer(value, "Div")
    if node is None:
        return None
    stage = _numerator(node.inputs[0], shapes or {})
    if stage is None:
        return None
    size = through(node.inputs[1], "Cast", "CastLike")
    if size is not stage.size and not is_size(size, stage):
        raise Miss("tau is not divided by the size of the support")
    if stage.size is not None and size is not stage.size:
        raise Miss("tau is divided by another count than the one it gathers with")
    stage.size = size
    return stage


def _numerator(value: ir.Value | None, shapes: Mapping[ir.Value, Sequence[int]]) -> Stage | None:
    """What is divided: the sum of the support less 1."""
    later = minus_one(value)  # the 1 is taken off after the sum was picked
    node = producer(value if later is None else later, "GatherElements", "ReduceSum")
    if node is None:
        return None
    if node.op_type == "ReduceSum":
        return None if later is None else _masked_sum(later, node, shapes)
    sums = node.inputs[0] if later is not None else minus_one(node.inputs[0])
    cumsum = producer(sums, "CumSum")
    stage = sort_stage(cumsum.inputs[0], shapes) if cumsum is not None else None
    if stage is None:
        return None
    is_cumsum(sums, stage)
    stage.along(attribute(node, "axis", 0), "GatherElements")
    size = through(minus_one(node.inputs[1]), "Cast")
    if size is None or not is_size(size, stage):
        raise Miss("tau is not gathered at the size of the support less 1")
    if later is not None:
        stage.notes.add(ROUNDING)
    stage.size = size
    return stage


def _masked_sum(value: ir.Value, node: ir.Node, shapes: Mapping[ir.Value, Sequence[int]]) -> Stage | None:
    product = producer(node.inputs[0], "Mul")
    for candidate in product.inputs if product is not None else ():
        if (stage := sort_stage(candidate, shapes)) is None:
            continue
        if masked(reduced(value, stage, "ReduceSum"), stage) is stage.sorted:
            stage.notes |= {ROUNDING, SLICE_NAN}
            return stage
    return None


def require_whole(stage: Stage, z: ir.Value, name: str) -> None:
    """Miss unless tau is of all of ``z``, and that of numbers that a kernel takes."""
    if stage.z is not z:
        raise Miss("tau is computed from another tensor than it is subtracted from")
    if stage.k < stage.n:
        raise Miss(
            f"sorts only the {stage.k} largest of {stage.n} and never recomputes, which is not {name}"
            f" for a slice with a support of more than {stage.k}"
        )
    if stage.k > stage.n:
        raise Miss(f"the k of TopK is {stage.k}, the axis has {stage.n}")
    if z.dtype not in FLOATS:
        raise Miss(
            f"the input is {'of unknown type' if z.dtype is None else z.dtype.name}; a float type is required"
        )


def before_shift(z: ir.Value, stage: Stage) -> ir.Value | None:
    """x where z is x less its maximum along the same axis."""
    shift = producer(z, "Sub")
    top = producer(shift.inputs[1], "ReduceMax") if shift is not None else None
    if top is None or top.inputs[0] is not shift.inputs[0] or not top.attributes.get_int("keepdims", 1):
        return None
    axis = scalar(top.inputs[1]) if len(top.inputs) > 1 else None
    return shift.inputs[0] if axis is not None and axis % stage.rank - stage.rank == stage.axis else None
