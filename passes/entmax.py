"""Recognise entmax as the entmax package exports it: entmax15 by sorting, entmax_bisect by halving.

    Max(z - tau, 0)^2,            tau from TopK, two CumSum and Sqrt of z = (x - max x) / 2   ->  Entmax(x)
    p / ReduceSum(p) or p alone,  p = Max(a x - tau, 0)^(1 / a), tau halved 24 times or more  ->  Entmax(x)

With alpha 2 the latter is Sparsemax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes import partial_sort
from sparsec.passes.base import SparsecPass
from sparsec.passes.entmax_forms import ENOUGH, half, halved, positive_part, root_stage, square_root, summed
from sparsec.passes.findings import Finding
from sparsec.passes.graph import (
    FLOATS,
    is_op,
    node_name,
    nodes,
    nodes_between,
    op_list,
    producer,
    replace_with_op,
)
from sparsec.passes.sparsemax_forms import NO_SHIFT, ROUNDING, Miss, before_shift, require_whole

#: Kernels take these: below, the power 1 / (alpha - 1) magnifies float32's rounding, above it does so near 0.
LEAST, MOST = 1.01, 2.0
_ENDS = ("Pow", "Mul", "Div", "Relu", "Clip", "Max")
HALVED = "its threshold is found by halving, so the last digits may differ"


@dataclass(frozen=True)
class RecogniseEntmax(SparsecPass):
    NAME: ClassVar[str] = "recognise-entmax"
    SUMMARY: ClassVar[str] = "find entmax written with TopK and CumSum, or as a bisection"
    EXAMPLE: ClassVar[str] = "recognise-entmax"

    def run(self, model: ir.Model) -> list[Finding]:
        findings, told = [], set()
        for node in reversed(list(nodes(model))):  # the steps of a halving look like its end
            if node.graph is None or node in told or not is_op(node, *_ENDS):
                continue
            name = node_name(node)
            try:
                match = _by_sorting(node) or _by_halving(node)
            except Miss as miss:
                pattern = _pattern(node)
                told.update(pattern)
                findings.append(self.declined(name, str(miss), op_list(pattern)))
                continue
            if match is None:
                continue
            x, alpha, axis, notes = match
            before = op_list(nodes_between(x, node))
            op = "Sparsemax" if alpha == 2 else "Entmax"
            own = {} if alpha == 2 else {"alpha": alpha}
            replace_with_op(model, node, op, [x], {**own, "axis": axis})
            which = f"{op.lower()}{'' if alpha == 2 else f' of alpha {alpha:.7g}'} along axis {axis}"
            reason = "; ".join([which, *sorted(notes)])
            findings.append(self.applied(name, reason, before, f"ai.sparsec.{op}"))
        return findings[::-1]


Match = tuple[ir.Value, float, int, set[str]]


def _by_sorting(node: ir.Node) -> Match | None:
    """(x, alpha, axis, notes) of the entmax15 that ends in ``node``; Miss says why it is none."""
    step = producer(positive_part(square_root(node.outputs[0])), "Sub")
    if step is None:
        return None
    z, tau = step.inputs
    kinds = {n.op_type for n in nodes_between(z, step)}
    if not {"TopK", "CumSum", "Sqrt"} <= kinds:
        return None
    stage = partial_sort.stage_of(z, tau, root_stage, "entmax") or root_stage(tau)
    if stage is None:
        if "GatherND" in kinds:
            raise Miss(partial_sort.ONE_SLICE)
        raise Miss("sorts, sums and takes a root, but tau is not that of entmax with alpha 1.5")
    require_whole(stage, z, "entmax")
    _require_narrow(z)
    x = half(before_shift(z, stage)) if half(z) is None else half(z)
    if x is None:
        raise Miss("the input is not halved first, which entmax with alpha 1.5 asks for")
    shifted = before_shift(z, stage) is not None
    if not shifted and (unshifted := before_shift(x, stage)) is not None:
        x, shifted = unshifted, True
    return x, 1.5, stage.axis, {ROUNDING} | (set() if shifted else {NO_SHIFT}) | stage.notes


def _by_halving(node: ir.Node) -> Match | None:
    """(x, alpha, axis, notes) of the entmax_bisect that ends in ``node``; Miss says why it is none."""
    value, axes = node.outputs[0], set()
    if node.op_type == "Div":
        value = node.inputs[0]
    elif any(is_op(use.node, "ReduceSum") for use in value.uses()):
        return None
    found = halved(value)
    if found is None or node.op_type == "Div" and summed(node.inputs[1], axes) is not value:
        return None
    if axes - {found.axis}:
        raise Miss("the shares are divided by their sum along another axis")
    alpha = float(np.float32(1 + found.rest))
    if not LEAST <= alpha <= MOST:
        raise Miss(f"alpha is {alpha:.7g}; kernels take those from {LEAST} to {MOST:g}")
    if found.count < ENOUGH:
        raise Miss(f"halves only {found.count} times, which is not entmax; {ENOUGH} are enough for float32")
    _require_narrow(found.x)
    return found.x, alpha, found.axis, {HALVED}


def _require_narrow(x: ir.Value) -> None:
    if x.dtype not in FLOATS or x.dtype == ir.DataType.DOUBLE:
        found = "of unknown type" if x.dtype is None else x.dtype.name
        raise Miss(f"the input is {found}; float32 or narrower is required")


def _pattern(node: ir.Node) -> list[ir.Node]:
    """What ``node`` is made of, back to the maximum."""
    pending, seen = [node], set()
    while pending:
        step = pending.pop()
        if step in seen:
            continue
        seen.add(step)
        if step.op_type not in ("ReduceMax", "TopK"):
            pending.extend(v.producer() for v in step.inputs if v is not None and v.producer() is not None)
    return [n for n in node.graph if n in seen]
