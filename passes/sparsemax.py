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

from sparsec.passes import partial_sort
from sparsec.passes.base import SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import (
    is_op,
    node_name,
    nodes,
    nodes_between,
    op_list,
    producer,
    replace_with_op,
)
from sparsec.passes.sparsemax_forms import (
    NO_SHIFT,
    Miss,
    before_shift,
    require_whole,
    tau_stage,
)
from sparsec.passes.threshold_forms import clamp


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
    """Whether ``z - tau`` looks like it: tau from running sums over a sorted z, without entmax's root."""
    z, tau = step.inputs
    if tau is None:
        return False
    kinds = {n.op_type for n in nodes_between(z, step)}
    return {"TopK", "CumSum"} <= kinds and "Sqrt" not in kinds


def _match(node: ir.Node, z: ir.Value, tau: ir.Value) -> tuple[ir.Value, int, set[str]]:
    """(x, axis, notes) of the sparsemax that ends in ``node``; Miss says why it is none."""
    bounds = clamp(node.outputs[0])
    if not bounds.low_is_zero or bounds.high is not None:
        raise Miss("the result is not max(z - tau, 0)")
    stage = partial_sort.stage_of(z, tau, tau_stage, "sparsemax") or tau_stage(tau)
    if stage is None:
        raise Miss(_why_other(z, node))
    require_whole(stage, z, "sparsemax")
    x = before_shift(z, stage)
    return (z, stage.axis, stage.notes | {NO_SHIFT}) if x is None else (x, stage.axis, stage.notes)


def _why_other(z: ir.Value, node: ir.Node) -> str:
    kinds = {n.op_type for n in nodes_between(z, node)}
    if "GatherND" in kinds:
        return partial_sort.ONE_SLICE
    return "sorts and sums, but tau is not (sum of the support - 1) / size of the support"
