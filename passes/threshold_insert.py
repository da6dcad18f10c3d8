"""Threshold activations where their zeros can be used: at every Relu, or at the input of linear layers.

    at=relu     Relu(x)           ->  ShiftedRelu(x, tau) (soft, shifted) or JumpRelu(x, tau) (hard, jump)
    at=linear   MatMul(x, W), ... ->  MatMul(SoftThreshold(x, tau), W), ...

At a Relu the threshold is applied to its result, which is never negative: there soft is the shifted ReLU
and hard is the jump ReLU, one operator instead of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import PassError, SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import (
    FLOATS,
    add_constant,
    const_array,
    free_name,
    is_op,
    node_name,
    nodes,
    replace_with_op,
)
from sparsec.passes.ops import DOMAIN, ensure_function
from sparsec.passes.ops.threshold import OPS

_KINDS = {"soft": "SoftThreshold", "hard": "HardThreshold", "shifted": "ShiftedRelu", "jump": "JumpRelu"}
_AFTER_RELU = {"soft": "ShiftedRelu", "hard": "JumpRelu", "shifted": "ShiftedRelu", "jump": "JumpRelu"}
_CLIPPED = {"SoftThreshold": "ClippedSoftThreshold", "ShiftedRelu": "ClippedShiftedRelu"}
_PLACES = ("relu", "linear")
_THRESHOLDS = {op.name for op in OPS}


@dataclass(frozen=True)
class InsertThreshold(SparsecPass):
    NAME: ClassVar[str] = "threshold"
    SUMMARY: ClassVar[str] = (
        "threshold activations, so that small ones become exact zeros (changes the output)"
    )
    EXAMPLE: ClassVar[str] = "threshold{kind=soft,tau=0.1}"

    kind: str = field(metadata={"choices": tuple(_KINDS), "help": "which formula; see docs/operators.md"})
    tau: float = field(metadata={"help": "the threshold, > 0, in the units of the activation"})
    at: str = field(
        default="relu",
        metadata={
            "choices": _PLACES,
            "help": "relu: the result of every Relu; linear: the input of MatMul, Gemm and Conv layers",
        },
    )
    m: float | None = field(
        default=None, metadata={"help": "clip the result of soft and shifted to magnitude m, > 0"}
    )

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise PassError(f"threshold: option kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if self.at not in _PLACES:
            raise PassError(f"threshold: option at must be one of {', '.join(_PLACES)}, got {self.at!r}")
        for name, value in (("tau", self.tau), ("m", self.m)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise PassError(f"threshold: option {name} must be finite and > 0, got {value}")
        if self.m is not None and self.kind not in ("soft", "shifted"):
            raise PassError(
                f"threshold: option m goes with kind=soft or kind=shifted, not {self.kind}; leave it out"
            )

    def run(self, model: ir.Model) -> list[Finding]:
        findings = self._at_relu(model) if self.at == "relu" else self._at_linear(model)
        if not findings:
            wanted = "Relu" if self.at == "relu" else "MatMul, Gemm or Conv with constant weights"
            findings.append(
                self.declined(model.graph.name or "the model", f"has no {wanted}", f"no {wanted}")
            )
        return findings

    def _at_relu(self, model: ir.Model) -> list[Finding]:
        findings = []
        op = self._clipped(_AFTER_RELU[self.kind])
        for node in nodes(model):
            if not is_op(node, "Relu"):
                continue
            name, x = node_name(node), node.inputs[0]
            if x.dtype not in FLOATS:
                findings.append(self.declined(name, _no_float(x), "Relu"))
                continue
            replace_with_op(model, node, op, [x, *self._operands(model, name, x.dtype)])
            findings.append(self.applied(name, self._asked(), "Relu", f"{DOMAIN}.{op}"))
        return findings

    def _at_linear(self, model: ir.Model) -> list[Finding]:
        findings = []
        op = self._clipped(_KINDS[self.kind])
        done: dict[ir.Value, ir.Value] = {}  # one threshold serves all layers that read the same value
        for node in nodes(model):
            index = _activation_index(node)
            if index is None:
                continue
            name, x = node_name(node), node.inputs[index]
            made_by = x.producer()
            if made_by is None:
                findings.append(self.declined(name, "its input is an input of the model", node.op_type))
                continue
            if made_by.domain == DOMAIN and made_by.op_type in _THRESHOLDS:
                reason = f"its input is thresholded already, by {made_by.op_type} {node_name(made_by)}"
                findings.append(self.declined(name, reason, node.op_type))
                continue
            if x.dtype not in FLOATS:
                findings.append(self.declined(name, _no_float(x), node.op_type))
                continue
            if x not in done:
                done[x] = self._threshold_of(model, x, op)
            node.replace_input_with(index, done[x])
            after = f"{DOMAIN}.{op}, {node.op_type}"
            findings.append(self.applied(name, self._asked(), node.op_type, after))
        return findings

    def _threshold_of(self, model: ir.Model, x: ir.Value, op: str) -> ir.Value:
        ensure_function(model, op)
        name = free_name(model, f"{x.name}_thresholded")
        inputs = [x, *self._operands(model, name, x.dtype)]
        out = ir.Value(name=name, shape=x.shape, type=x.type)
        new = ir.node(op, inputs, domain=DOMAIN, name=name, outputs=[out])
        x.producer().graph.insert_after(x.producer(), new)
        return out

    def _operands(self, model: ir.Model, name: str, dtype: ir.DataType) -> list[ir.Value]:
        numbers = {"tau": self.tau} if self.m is None else {"tau": self.tau, "m": self.m}
        return [add_constant(model, f"{name}_{k}", np.array(v, dtype.numpy())) for k, v in numbers.items()]

    def _clipped(self, op: str) -> str:
        return op if self.m is None else _CLIPPED[op]

    def _asked(self) -> str:
        return f"asked for; {self.kind}, tau = {self.tau:.6g}" + (
            "" if self.m is None else f", m = {self.m:.6g}"
        )


def _no_float(x: ir.Value) -> str:
    found = "of unknown type; run shape inference" if x.dtype is None else x.dtype.name
    return f"its input is {found}, a float type is required"


def _activation_index(node: ir.Node) -> int | None:
    """Which input of a linear layer is the activation; None unless the other is a constant."""
    layer = is_op(node, "MatMul", "Gemm", "Conv") or is_op(
        node, "NMMatMul", "NMGemm", "NMConv", domain=DOMAIN
    )
    if not layer:
        return None
    constant = [const_array(v) is not None for v in node.inputs[:2]]
    return constant.index(False) if sum(constant) == 1 else None
