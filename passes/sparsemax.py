"""Recognise sparsemax as the entmax package exports it and as people write it.

    Relu(z - tau),  tau from TopK + CumSum + Greater + ReduceSum + GatherElements  ->  Sparsemax(z)

with or without the subtraction of the row's maximum (then of x = z + max, which is the same).  The form
with a partial sort (entmax's ``k=``) is sparsemax only where the graph also recomputes the slices whose
support fills all k: what a tracer records depends on the example it saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from sparsec.passes.base import SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import (
    FLOATS,
    attribute,
    is_op,
    node_name,
    nodes,
    nodes_between,
    op_list,
    producer,
    replace_with_op,
)
from sparsec.passes.sparsemax_forms import Miss, Stage, scalar, tau_stage, through
from sparsec.passes.threshold_forms import clamp

NO_SHIFT = "the maximum is subtracted first here, so the last digits may differ"


@dataclass(frozen=True)
class RecogniseSparsemax(SparsecPass):
    NAME: ClassVar[str] = "recognise-sparsemax"
    SUMMARY: ClassVar[str] = "find sparsemax written with TopK and CumSum"
    EXAMPLE: ClassVar[str] = "recognise-sparsemax"

    def run(self, model: ir.Model) -> list[Finding]:
        findings = []
        for node in nodes(model):
            if not is_op(node, "Relu", "Clip", "Max") or (bounds := clamp(node.outputs[0])) is None:
                continue
            step = producer(bounds.inner, "Sub")
            if step is None or not _sorts_for(step):
                continue
            z, tau = step.inputs
            name, pattern = node_name(node), nodes_between(z, node)
            try:
                x, axis, notes = _match(node, z, tau)
            except Miss as miss:
                findings.append(self.declined(name, str(miss), op_list(pattern)))
                continue
            if x is not z:
                pattern = nodes_between(x, node)
            replace_with_op(model, node, "Sparsemax", [x], {"axis": axis})
            reason = "; ".join(
                [
                    f"sparsemax along axis {axis}",
                    *(sorted(notes) or ["the same in every bit unless a slice has NaN or +inf"]),
                ]
            )
            findings.append(self.applied(name, reason, op_list(pattern), "ai.sparsec.Sparsemax"))
        return findings


def _sorts_for(step: ir.Node) -> bool:
    """Whether ``z - tau`` looks like the family: tau comes from running sums over a sorted z."""
    z, tau = step.inputs
    if tau is None:
        return False
    kinds = {n.op_type for n in nodes_between(z, step)}
    return {"TopK", "CumSum"} <= kinds


def _match(node: ir.Node, z: ir.Value, tau: ir.Value) -> tuple[ir.Value, int, set[str]]:
    """(x, axis, notes) of the sparsemax that ends in ``node``; Miss says why it is none."""
    bounds = clamp(node.outputs[0])
    if not bounds.low_is_zero or bounds.high is not None:
        raise Miss("the result is not max(z - tau, 0)")
    stage = _with_recomputation(z, tau) if producer(tau, "ScatterND") else tau_stage(tau)
    if stage is None:
        raise Miss(_why_other(z, node))
    if stage.z is not z:
        raise Miss("tau is computed from another tensor than it is subtracted from")
    if stage.k < stage.n:
        raise Miss(
            f"sorts only the {stage.k} largest of {stage.n} and never recomputes, which is not sparsemax"
            f" for a slice with a support of more than {stage.k}"
        )
    if stage.k > stage.n:
        raise Miss(f"the k of TopK is {stage.k}, the axis has {stage.n}")
    if z.dtype not in FLOATS:
        raise Miss(
            f"the input is {'of unknown type' if z.dtype is None else z.dtype.name}; a float type is required"
        )
    x = _before_shift(z, stage)
    return (z, stage.axis, stage.notes | {NO_SHIFT}) if x is None else (x, stage.axis, stage.notes)


def _why_other(z: ir.Value, node: ir.Node) -> str:
    kinds = {n.op_type for n in nodes_between(z, node)}
    if "GatherND" in kinds:
        return "recomputes exactly one slice, as in the example traced; the graph fails for any other number"
    if kinds & {"Sqrt", "Pow"}:
        return "this is entmax with alpha 1.5, not sparsemax (alpha 2); it stays as it is"
    return "sorts and sums, but tau is not (sum of the support - 1) / size of the support"


def _before_shift(z: ir.Value, stage: Stage) -> ir.Value | None:
    """x where z is x less its maximum along the same axis."""
    shift = producer(z, "Sub")
    top = producer(shift.inputs[1], "ReduceMax") if shift is not None else None
    if top is None or top.inputs[0] is not shift.inputs[0] or not top.attributes.get_int("keepdims", 1):
        return None
    axis = scalar(top.inputs[1]) if len(top.inputs) > 1 else None
    return shift.inputs[0] if axis is not None and axis % stage.rank - stage.rank == stage.axis else None


def _with_recomputation(z: ir.Value, tau: ir.Value) -> Stage | None:
    """entmax's ``k=``: tau of the k largest, and of all where the support fills k, put in by ScatterND."""
    scatter = producer(tau, "ScatterND")
    first = tau_stage(scatter.inputs[0])
    if first is None:
        return None
    if first.z is not z:
        raise Miss("tau is computed from another tensor than it is subtracted from")
    if first.axis != -1:
        raise Miss(
            f"a partial sort along axis {first.axis}; recomputation is understood along the last axis only"
        )
    updates = scatter.inputs[2]
    cut = producer(updates, "Slice")  # the exporter takes the first len(indices) of len(indices) updates
    if cut is not None and scalar(cut.inputs[1]) == 0:
        updates = cut.inputs[0]
    second_tau = through(updates, "Reshape", "Squeeze")
    picked = _picked(second_tau, z)
    exactly = (
        picked is not None
        and _is_full(picked.inputs[1], first)
        and _is_full(scatter.inputs[1], first)
        and attribute(picked, "batch_dims", 0) == 0
        and attribute(scatter, "reduction", "none") == "none"
    )
    if not exactly:
        raise Miss("recomputes, but not exactly the slices whose support fills k")
    # The number of picked slices is known only at run time; what does not depend on it is proved for two.
    rows = picked.outputs[0]
    top = _topk_over(second_tau, rows)
    for count in (2, 3):
        shapes = {rows: (count, first.n)}
        if top is not None:
            k = scalar(top.inputs[1], shapes)
            shapes[top.outputs[0]] = (count, int(k) if k is not None else first.n)
        if producer(second_tau, "ScatterND"):
            raise Miss("recomputes more than once; only a second, full sort is understood")
        second = tau_stage(second_tau, shapes)
        if second is None or second.z is not rows or second.axis != -1:
            raise Miss("recomputes, but not sparsemax of the picked slices")
        if second.k < second.n:
            raise Miss(
                f"sorts the {first.k} and then the {second.k} largest of {first.n}, which is not sparsemax"
                f" for a slice with a support of more than {second.k}"
            )
    notes = first.notes | second.notes
    return Stage(z, first.rank, -1, first.n, first.n, first.sorted, first.shape, first.size, notes)


def _picked(tau: ir.Value | None, z: ir.Value) -> ir.Node | None:
    """The GatherND on ``z`` that ``tau`` is computed from."""
    node = tau.producer() if tau is not None else None
    for inner in nodes_between(z, node) if node is not None else ():
        if is_op(inner, "GatherND") and inner.inputs[0] is z:
            return inner
    return None


def _topk_over(tau: ir.Value, rows: ir.Value) -> ir.Node | None:
    for inner in nodes_between(rows, tau.producer()):
        if is_op(inner, "TopK") and inner.inputs[0] is rows:
            return inner
    return None


def _is_full(indices: ir.Value | None, first: Stage) -> bool:
    """Whether ``indices`` are those of the slices whose support fills k: Transpose(NonZero(size == k))."""
    transpose = producer(indices, "Transpose")
    nonzero = producer(transpose.inputs[0], "NonZero") if transpose is not None else None
    if nonzero is None or tuple(attribute(transpose, "perm", (1, 0))) != (1, 0):
        return False
    mask = nonzero.inputs[0]
    while (step := producer(mask, "Squeeze", "Unsqueeze")) is not None:
        if scalar(step.inputs[1]) not in (-1, first.rank - 1):  # only the last axis, which has length 1
            return False
        mask = step.inputs[0]
    equal = producer(mask, "Equal")
    if equal is None:
        return False
    a, b = equal.inputs
    return (a is first.size and scalar(b) == first.k) or (b is first.size and scalar(a) == first.k)
