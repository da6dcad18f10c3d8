"""Remove channels that carry nothing between two layers: what structured pruning leaves behind.

    P = MatMul, Gemm or Conv -> elementwise operators -> Q = MatMul, Gemm or Conv, all with constant weights

A channel between P and Q goes when every Q has only zeros for it, or when P has only zeros for it and so
makes a constant there; with ``v`` that constant after the elementwise operators, ``v * W_Q[:, c]`` is added
to the bias of Q.  Both weights and the constants between become smaller; nothing else changes but the order
of sums.  (As wherever a zero weight is skipped, ``0 * inf`` is 0.)  Where removal would spoil an N:M pattern
that is worth more, the channels stay.

Channels that no layer reads go wherever they can be followed (`channels`), through sums, pooling and
normalisation of each channel too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import SparsecPass
from sparsec.passes.channel_removal import remove, unread, why_not
from sparsec.passes.channels import find_channels
from sparsec.passes.findings import Finding
from sparsec.passes.graph import add_constant, attribute, const_array, is_op, node_name, remove_dead
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.nm_pattern import NM
from sparsec.passes.nm_structure import find

SHARED = 16
"""A pattern that so many outputs share runs as fast as one that more share."""

_erf = np.vectorize(math.erf, otypes=[np.float64])

# Operator -> its value for float64 arrays; any further input is a constant or of the same shape.
_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "Identity": lambda node, x: x,
    "Relu": lambda node, x: np.maximum(x, 0),
    "LeakyRelu": lambda node, x: np.where(x < 0, attribute(node, "alpha", 0.01) * x, x),
    "Neg": lambda node, x: -x,
    "Abs": lambda node, x: np.abs(x),
    "Tanh": lambda node, x: np.tanh(x),
    "Sigmoid": lambda node, x: 1 / (1 + np.exp(-x)),
    "Erf": lambda node, x: _erf(x),
    "Clip": lambda node, x, low=-np.inf, high=np.inf: np.minimum(np.maximum(x, low), high),
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": lambda node, a, b: a / b,
}


@dataclass
class _Between:
    """What lies between `first` and the layers that read it: nodes in order, and their constants."""

    first: Layer
    nodes: list[ir.Node] = field(default_factory=list)
    values: list[ir.Value] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)


@dataclass(frozen=True)
class RemoveDeadChannels(SparsecPass):
    NAME: ClassVar[str] = "remove-dead-channels"
    SUMMARY: ClassVar[str] = "remove channels between two layers that one of them has only zeros for"
    EXAMPLE: ClassVar[str] = "remove-dead-channels"

    def run(self, model: ir.Model) -> list[Finding]:
        findings: list[Finding] = []
        layers = {layer.node: layer for layer in find_layers(model)}
        for node in list(layers):
            if findings and findings[-1].applied:  # removal has made new weights
                layers = {layer.node: layer for layer in find_layers(model)}
            first = layers[node]
            silent = ~np.any(first.weight, axis=(1, 2))
            between = _between(first, layers)
            if isinstance(between, str):
                if silent.any() and not silent.all():
                    text = f"{_count(silent)} make a constant, but stay: {between}"
                    findings.append(self.declined(node_name(node), text, first.before))
                continue
            dead = _dead(between, silent)
            if not dead.any() or dead.all():
                continue
            name, before = node_name(node), first.before
            readers = ", ".join(node_name(layer.node) for layer in between.readers)
            if spoilt := _spoilt(between, ~dead):
                text = f"{_count(dead)} could go, but stay for the pattern {spoilt}"
                findings.append(self.declined(name, text, before))
                continue
            _remove(model, between, ~dead)
            text = f"{_count(dead)} carry nothing to {readers}: removed"
            findings.append(self.applied(name, text, before, f"{before} of {int((~dead).sum())} channels"))
        told = {finding.node for finding in findings}
        return findings + [f for f in self._followed(model) if f.applied or f.node not in told]

    def _followed(self, model: ir.Model) -> list[Finding]:
        """Channels that nothing reads, behind operators of which no constant's value is known here."""
        findings: list[Finding] = []
        if all(layer.weight.any(axis=(0, 1)).all() for layer in find_layers(model)):
            return findings
        moves = []
        for channels in find_channels(model):
            dead = unread(channels)
            if not dead.any() or dead.all():
                continue
            readers = [layer for layer, _ in channels.readers]
            name, before = node_name(channels.makers[0].node), channels.makers[0].before
            reason = why_not(channels)
            if reason is None and all(inner == 1 for _, inner in channels.readers):
                spoilt = _spoilt(_Between(channels.makers[0], readers=readers), ~dead)
                reason = spoilt and f"for the pattern {spoilt}"
            if reason is not None:
                text = f"{_count(dead)} are not read, but stay: {reason}"
                findings.append(self.declined(name, text, before))
                continue
            moves.append((channels, ~dead))
            text = f"{_count(dead)} carry nothing to {', '.join(map(node_name, (r.node for r in readers)))}"
            after = f"{before} of {int((~dead).sum())} channels"
            findings.append(self.applied(name, f"{text}: removed", before, after))
        remove(model, moves)
        return findings


def _count(channels: np.ndarray) -> str:
    return f"{int(channels.sum())} of {len(channels)} output channels"


def _between(first: Layer, layers: dict[ir.Node, Layer]) -> _Between | str:
    """The region behind `first`, or why there is none."""
    if not _plain(first) or _bias(first) is None or first.node.outputs[0].shape is None:
        return "the layer has a form that is not rewritten"
    found = _Between(first, values=[first.node.outputs[0]])
    pending, taken = [first.node.outputs[0]], set()
    while pending:
        value = pending.pop(0)
        if value.is_graph_output():
            return f"{value.name} is an output of the model"
        for user, index in value.uses():
            reader = layers.get(user)
            if reader is not None and index == 0:
                if not _plain(reader) or attribute(user, "transA", 0) or user.graph is not first.node.graph:
                    return f"{node_name(user)} reads them in a form that is not rewritten"
                found.readers.append(reader)
            elif is_op(user, *_ELEMENTWISE) and user.graph is first.node.graph:
                if user not in taken:
                    taken.add(user)
                    pending.append(user.outputs[0])
                    found.values.append(user.outputs[0])
            else:
                return f"{node_name(user)} ({user.op_type}) reads them"
    found.nodes = [node for node in first.node.graph if node in taken]
    inside = set(found.values)
    for node in found.nodes:
        for value in node.inputs:
            if value is not None and value not in inside and _vector(value, found) is None:
                return f"{node_name(node)} joins them with something that is no constant of a channel"
    return found if found.readers else "no layer reads them"


def _plain(layer: Layer) -> bool:
    return layer.refusal is None and layer.groups == 1 and layer.before == layer.standard


def _axis(layer: Layer) -> int:
    """The axis of the channels in the layer's output."""
    return 1 if layer.convolves else len(layer.node.outputs[0].shape) - 1


def _vector(value: ir.Value, between: _Between) -> np.ndarray | None:
    """A constant as one number for each channel, or as one number; None for anything else."""
    array, rank = const_array(value), len(between.first.node.outputs[0].shape)
    if array is None or array.ndim > rank:
        return None
    shape = [1] * (rank - array.ndim) + list(array.shape)
    channels = shape.pop(_axis(between.first))
    whole = all(size == 1 for size in shape) and channels in (1, between.first.weight.shape[0])
    return array.reshape(-1) if whole else None


def _bias(layer: Layer) -> np.ndarray | None:
    """The bias that the layer itself adds, float64 `[out]`; None where it is no such thing."""
    out = layer.weight.shape[0]
    if len(layer.node.inputs) < 3 or layer.node.inputs[2] is None:
        return np.zeros(out)
    array = const_array(layer.node.inputs[2])
    if array is None or array.size != out or attribute(layer.node, "beta", 1.0) != 1:
        return None
    return array.reshape(-1).astype(np.float64)


def _constants(between: _Between) -> dict[ir.Value, np.ndarray]:
    """What the values between are, channel by channel, where `first` has only zeros."""
    known = {between.first.node.outputs[0]: _bias(between.first)}
    with np.errstate(all="ignore"):
        for node in between.nodes:
            inputs = [
                known.get(v) if v in known else _vector(v, between) for v in node.inputs if v is not None
            ]
            known[node.outputs[0]] = _ELEMENTWISE[node.op_type](node, *inputs)
    return known


def _dead(between: _Between, silent: np.ndarray) -> np.ndarray:
    unread = np.logical_and.reduce([~np.any(layer.weight, axis=(0, 1)) for layer in between.readers])
    constants = _constants(between)
    for layer in between.readers:
        value = np.broadcast_to(constants[layer.node.inputs[0]], silent.shape)
        # A constant goes into the bias; at the border of a padded convolution it is not one.
        into_bias = _target(layer) is not None
        silent = silent & (value == 0 if not into_bias else np.isfinite(value))
    return unread | silent


def _target(layer: Layer) -> ir.Node | None:
    """The node whose constant can take what a removed channel adds to the output of `layer`."""
    node = layer.node
    if layer.standard == "ConvTranspose":
        return None  # its outputs meet different taps
    if layer.standard == "Conv":
        padded = any(attribute(node, "pads", ())) or attribute(node, "auto_pad", "NOTSET") not in (
            "NOTSET",
            "VALID",
        )
        return None if padded or _bias(layer) is None else node
    if layer.standard == "Gemm":
        return node if attribute(node, "alpha", 1.0) == 1 and _bias(layer) is not None else None
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output() or not is_op(uses[0].node, "Add"):
        return None
    array = const_array(uses[0].node.inputs[1 - uses[0].idx])
    return uses[0].node if array is not None and array.shape == (layer.weight.shape[0],) else None


def _spoilt(between: _Between, kept: np.ndarray) -> str | None:
    """A pattern that the removal would break, unless it leaves less than half of the multiplications."""
    before = after = 0.0
    lost: list[str] = []
    changes = [(between.first.weight, between.first.weight[kept])]
    changes += [(layer.weight, layer.weight[:, :, kept]) for layer in between.readers]
    patterns = [find(old) for old, _ in changes]
    if not any(isinstance(pattern, NM) for pattern in patterns):
        return None  # looking for the patterns of what is left takes as long again
    for (old, new), pattern in zip(changes, patterns, strict=True):
        left = find(new)
        before, after = before + _work(old, pattern), after + _work(new, left)
        # Zeros that fill whole inputs look like a pattern too.
        if isinstance(pattern, NM) and not np.all(old[:, :, np.any(old, axis=(0, 1))]):
            same = isinstance(left, NM) and (left.n, left.m) == (pattern.n, pattern.m)
            if not same or left.block < min(pattern.block, SHARED):
                lost.append(str(pattern))
    return lost[-1] if lost and 2 * after > before else None


def _work(weight: np.ndarray, found: object) -> float:
    return weight.size * (found.kept_fraction(weight.shape[-1]) if isinstance(found, NM) else 1.0)


def _remove(model: ir.Model, between: _Between, kept: np.ndarray) -> None:
    constants = _constants(between)
    silent = ~np.any(between.first.weight, axis=(1, 2)) & ~kept
    for layer in between.readers:
        value = np.broadcast_to(constants[layer.node.inputs[0]], kept.shape)
        added = layer.weight[:, :, silent].sum(axis=1).astype(np.float64) @ value[silent]
        if np.any(added):
            _add_to_bias(model, layer, added)
        _set(model, layer.node, 1, layer.stored(layer.weight[:, :, kept]))
    first = between.first
    if len(first.node.inputs) > 2 and first.node.inputs[2] is not None:
        _set(model, first.node, 2, const_array(first.node.inputs[2]).reshape(-1)[kept])
    axis, outside = _axis(first), set(between.values)
    for node in between.nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value not in outside and const_array(value).size == len(kept):
                array = const_array(value)
                _set(
                    model,
                    node,
                    index,
                    array.compress(kept, array.ndim - (len(first.node.outputs[0].shape) - axis)),
                )
    _set(model, first.node, 1, first.stored(first.weight[kept]))
    for value in between.values:
        sizes = list(value.shape)
        sizes[axis] = int(kept.sum())
        value.shape = ir.Shape(sizes)


def _add_to_bias(model: ir.Model, layer: Layer, added: np.ndarray) -> None:
    target = _target(layer)
    if target is not layer.node:
        index = 1 - layer.node.outputs[0].uses()[0].idx
        bias = const_array(target.inputs[index])
    else:
        index, bias = 2, _bias(layer)
        if len(target.inputs) < 3:
            target.resize_inputs(3)
    _set(model, target, index, (bias.astype(np.float64) + added).astype(layer.array.dtype))


def _set(model: ir.Model, node: ir.Node, index: int, array: np.ndarray) -> None:
    old = node.inputs[index]
    name = f"{old.name if old is not None else node_name(node) + '_bias'}_kept"
    node.replace_input_with(index, add_constant(model, name, np.ascontiguousarray(array)))
    remove_dead([old])
