"""Replace Softmax by what gives exact zeros: Softmax(x) -> Sparsemax(x) or Entmax(x) along the same axis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from sparsec.passes.base import PassError, SparsecPass
from sparsec.passes.entmax import LEAST, MOST
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


_WHERE = field(
    default="attention",
    metadata={
        "choices": ("attention", "all"),
        "help": "attention: those whose result is multiplied with a computed tensor; all: every Softmax",
    },
)


@dataclass(frozen=True)
class InsertSparsemax(SparsecPass):
    NAME: ClassVar[str] = "sparsemax"
    SUMMARY: ClassVar[str] = "replace Softmax by sparsemax (changes the output; fine-tune for it)"
    EXAMPLE: ClassVar[str] = "sparsemax{where=all}"

    where: str = _WHERE

    def __post_init__(self) -> None:
        _require_place(self)

    def run(self, model: ir.Model) -> list[Finding]:
        return _replace(self, model, "Sparsemax", "asked for")


@dataclass(frozen=True)
class InsertEntmax(SparsecPass):
    NAME: ClassVar[str] = "entmax"
    SUMMARY: ClassVar[str] = "replace Softmax by entmax, between softmax and sparsemax (changes the output)"
    EXAMPLE: ClassVar[str] = "entmax{alpha=1.5}"

    alpha: float = field(
        default=1.5, metadata={"help": f"from {LEAST} (nearly softmax) to {MOST:g} (sparsemax)"}
    )
    where: str = _WHERE

    def __post_init__(self) -> None:
        if not LEAST <= self.alpha <= MOST:
            raise PassError(
                f"entmax: option alpha must be from {LEAST} to {MOST:g}, got {self.alpha:g};"
                " 1 is softmax, 2 is sparsemax"
            )
        _require_place(self)

    def run(self, model: ir.Model) -> list[Finding]:
        if self.alpha == MOST:
            return _replace(self, model, "Sparsemax", "asked for; with alpha 2 entmax is sparsemax")
        return _replace(self, model, "Entmax", f"asked for; alpha {self.alpha:g}", alpha=self.alpha)


def _require_place(pass_: InsertSparsemax | InsertEntmax) -> None:
    if pass_.where not in ("attention", "all"):
        raise PassError(f"{pass_.NAME}: option where must be attention or all, got {pass_.where!r}")


def _replace(
    pass_: InsertSparsemax | InsertEntmax, model: ir.Model, op: str, why: str, **attributes: float
) -> list[Finding]:
    """Put ``op`` with ``attributes`` in the place of every Softmax that ``pass_.where`` names."""
    findings = []
    for node in nodes(model):
        if not is_op(node, "Softmax"):
            continue
        name, axis = node_name(node), attribute(node, "axis", -1)
        if pass_.where == "attention" and not _feeds_attention(node):
            reason = "no attention: its result is multiplied with no computed tensor; where=all takes it too"
            findings.append(pass_.declined(name, reason, "Softmax"))
            continue
        replace_with_op(model, node, op, [node.inputs[0]], {**attributes, "axis": axis})
        findings.append(pass_.applied(name, f"{why}; along axis {axis}", "Softmax", f"ai.sparsec.{op}"))
    if not findings:
        findings.append(pass_.declined(model.graph.name or "the model", "has no Softmax", "no Softmax"))
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
