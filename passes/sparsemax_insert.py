"""Replace Softmax by sparsemax, which gives exact zeros: Softmax(x) -> Sparsemax(x) along the same axis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from sparsec.passes.base import PassError, SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import attribute, const_array, is_op, node_name, nodes, replace_with_op

# What may stand between the probabilities and the product with the values, without mixing positions.
_PASSED_THROUGH = (
    "Identity",
    "Cast",
    "Dropout",
    "Where",
    "Reshape",
    "Transpose",
    "Expand",
    "Squeeze",
    "Unsqueeze",
)


@dataclass(frozen=True)
class InsertSparsemax(SparsecPass):
    NAME: ClassVar[str] = "sparsemax"
    SUMMARY: ClassVar[str] = "replace Softmax by sparsemax (changes the output; fine-tune for it)"
    EXAMPLE: ClassVar[str] = "sparsemax{where=all}"

    where: str = field(
        default="attention",
        metadata={
            "choices": ("attention", "all"),
            "help": "attention: those whose result is multiplied with a computed tensor; all: every Softmax",
        },
    )

    def __post_init__(self) -> None:
        if self.where not in ("attention", "all"):
            raise PassError(f"sparsemax: option where must be attention or all, got {self.where!r}")

    def run(self, model: ir.Model) -> list[Finding]:
        findings = []
        for node in nodes(model):
            if not is_op(node, "Softmax"):
                continue
            name, axis = node_name(node), attribute(node, "axis", -1)
            if self.where == "attention" and not _feeds_attention(node):
                reason = (
                    "no attention: its result is multiplied with no computed tensor; where=all takes it too"
                )
                findings.append(self.declined(name, reason, "Softmax"))
                continue
            replace_with_op(model, node, "Sparsemax", [node.inputs[0]], {"axis": axis})
            reason = f"asked for; along axis {axis}"
            findings.append(self.applied(name, reason, "Softmax", "ai.sparsec.Sparsemax"))
        if not findings:
            findings.append(self.declined(model.graph.name or "the model", "has no Softmax", "no Softmax"))
        return findings


def _feeds_attention(softmax: ir.Node) -> bool:
    """Whether the result reaches a MatMul or Einsum whose other operand is computed at run time."""
    pending, seen = [softmax.outputs[0]], set()
    while pending:
        value = pending.pop()
        for use in value.uses():
            if use.node in seen:
                continue
            seen.add(use.node)
            if is_op(use.node, "MatMul", "Einsum"):
                others = [v for i, v in enumerate(use.node.inputs) if i != use.idx]
                if any(const_array(v) is None for v in others):
                    return True
            elif is_op(use.node, *_PASSED_THROUGH):
                pending.append(use.node.outputs[0])
    return False
