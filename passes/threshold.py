"""Recognise thresholding activations, whatever operators they are written with.

    Relu(x - t)                                               -> ShiftedRelu(x, t)
    Sign(x) * Relu(Abs(x) - t),  Relu(x - t) - Relu(-x - t)   -> SoftThreshold(x, t)
    Shrink<lambd=t, bias=t>(x),  x - Clip(x, -t, t)           -> SoftThreshold(x, t)
    Where(Abs(x) > t, x, 0),     Shrink<lambd=t, bias=0>(x)   -> HardThreshold(x, t)
    Where(x > t, x, 0),          ThresholdedRelu<alpha=t>(x)  -> JumpRelu(x, t)
    the first two, clipped to [0, m] or [-m, m]               -> ClippedShiftedRelu, ClippedSoftThreshold

and what both torch exporters write for softshrink, hardshrink and threshold.  Every form gives the same
number for every number; where it treats NaN, -inf or the sign of a zero differently, the finding says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import (
    FLOATS,
    add_constant,
    broadcasts_into,
    const_array,
    node_name,
    nodes,
    nodes_between,
    op_list,
    replace_with_op,
)
from sparsec.passes.threshold_forms import Form, Refusal, Threshold
from sparsec.passes.threshold_rules import match


@dataclass(frozen=True)
class RecogniseThreshold(SparsecPass):
    NAME: ClassVar[str] = "recognise-threshold"
    SUMMARY: ClassVar[str] = "find soft, hard, shifted and clipped thresholds however they are written"
    EXAMPLE: ClassVar[str] = "recognise-threshold"

    def run(self, model: ir.Model) -> list[Finding]:
        findings: list[Finding] = []
        told: set[ir.Node] = set()
        # From the outputs up, so that Clip(Sign(x) * Relu(Abs(x) - t)) is met before the Relu inside it.
        for node in reversed(list(nodes(model))):
            if node.graph is None or node in told:
                continue
            found = match(node)
            if found is None:
                continue
            stop = found.tau.value if isinstance(found, Form) else found.tau
            pattern = nodes_between(found.x, node, stop)
            if isinstance(found, Form):
                found = check(found, pattern)
            name, before = node_name(node), op_list(pattern)
            if isinstance(found, Refusal):
                if not found.inner_may_match:
                    told.update(pattern)
                findings.append(self.declined(name, found.reason, before))
                continue
            inputs = [found.x, _operand(model, found.tau, f"{name}_tau")]
            if found.m is not None:
                inputs.append(_operand(model, Threshold(None, found.m), f"{name}_m"))
            replace_with_op(model, node, found.op, inputs)
            findings.append(self.applied(name, _reason(found), before, f"ai.sparsec.{found.op}"))
        return findings[::-1]


def check(form: Form, pattern: Sequence[ir.Node]) -> Form | Refusal:
    """``form`` with its final tau if the operator's conditions hold, else why not."""

    def refuse(reason: str) -> Refusal:
        return Refusal(reason, form.x, tau=form.tau.value)

    tau = form.tau.array
    if tau is None:
        name = form.tau.value.name if form.tau.value is not None else "?"
        return refuse(f"the threshold {name} is computed at run time; a constant is required")
    dtype = form.x.dtype or ir.DataType.from_numpy(tau.dtype)
    if dtype not in FLOATS:
        return refuse(f"x is {dtype.name}; a float type is required")
    for name, array in (("threshold", tau), ("clipping bound", form.m)):
        if array is None:
            continue
        if not np.all(np.isfinite(array)):
            return refuse(f"the {name} is not finite")
        if np.any(array < 0):
            return refuse(f"the {name} is negative ({_range(array)}); 0 or more is required")
        if not broadcasts_into(array.shape, form.x):
            shape = "unknown" if form.x.shape is None else str(form.x.shape)
            return refuse(f"the {name} of shape {list(array.shape)} may widen x, whose shape is {shape}")
    for node in pattern:  # the zeros of a Where, a second copy of the threshold
        for value in node.inputs:
            array = const_array(value)
            if array is not None and not broadcasts_into(array.shape, form.x):
                return refuse(f"the constant {value.name} of shape {list(array.shape)} may widen x")
    if not np.any(tau > 0):
        return refuse("the threshold is 0, so nothing is thresholded that Relu or identity would not be")
    if form.strict:
        return form
    # x >= t is x > the float just below t
    if not np.all(tau > 0):
        return refuse("compares with >= and a threshold of 0, which keeps what lies on it")
    below = np.nextafter(tau, np.zeros_like(tau)).astype(tau.dtype)
    return Form(form.op, form.x, Threshold(None, below), form.m, form.notes)


def _operand(model: ir.Model, t: Threshold, name: str) -> ir.Value:
    if t.value is not None and not t.negated:
        return t.value
    return add_constant(model, name, np.asarray(t.array))


def _range(array: np.ndarray) -> str:
    if array.size == 1:
        return f"{array.item():.6g}"
    return f"{array.size} values in [{array.min():.6g}, {array.max():.6g}]"


def _reason(form: Form) -> str:
    text = f"tau = {_range(form.tau.array)}"
    if form.m is not None:
        text += f", m = {_range(form.m)}"
    return f"{text}; the same for every number" + "".join(f"; {n}" for n in form.notes)


__all__ = ["RecogniseThreshold"]
