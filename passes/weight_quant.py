"""Round the weights of matrix products to 8 or 4 bits: `quantise-weights{bits=4,group=32}`.

    MatMul(x, W)  ->  WeightQuantMatMul<bits>(x, Q, S, Z, I),    W ~ transpose((Q - Z) * S)

and likewise Gemm, NMMatMul and NMGemm; activations stay as they are. Neighbouring input channels of an output
channel are a group with one scale (`quantize.groups`). Weights are rounded to the nearest, zeros to zeros, or
with a `fit` for the least error of the layers' outputs (`quantize.weights`). Patterns stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import PassError, SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import (
    add_constant,
    attribute,
    const_array,
    is_op,
    node_name,
    replace_node,
    replace_with_op,
)
from sparsec.passes.nm_choice import Choice
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.ops import DOMAIN, ensure_function
from sparsec.passes.ops.weight_quant import NAME, dequantised
from sparsec.passes.prune.places import cannot
from sparsec.passes.quantize.groups import BITS, GROUP, nearest
from sparsec.passes.quantize.weights import Rounded

Fit = Callable[[ir.Model, Sequence[Layer], int, int], Mapping[tuple, Rounded]]
"""`quantize.weights.fit` of a model, layers, bits and group, with its observers."""


@dataclass(frozen=True)
class QuantiseWeights(SparsecPass):
    """Weights of `bits`, `group` input channels with a scale; `layers` and `skip` choose by node name."""

    NAME: ClassVar[str] = "quantise-weights"
    SUMMARY: ClassVar[str] = (
        "round the weights of MatMul and Gemm to 8 or 4 bits, with a scale for each group"
    )
    EXAMPLE: ClassVar[str] = "quantise-weights{bits=4,group=32,skip=*head*}"

    bits: int = field(default=8, metadata={"help": "bits of a weight", "choices": BITS})
    group: int = field(
        default=0,
        metadata={"help": f"input channels that share a scale, 0: {GROUP[8]} or, of 4 bits, {GROUP[4]}"},
    )
    min_size: int = field(default=4096, metadata={"help": "layers with fewer weights stay as they are"})
    layers: str = field(default="*", metadata={"help": "only nodes with such names: globs, joined by |"})
    skip: str = field(default="", metadata={"help": "but not these nodes: globs, joined by |"})

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise PassError(f"{self.NAME}: bits must be 8 or 4, found {self.bits}")
        if self.group % 16 or not 0 <= self.group <= 256:
            raise PassError(f"{self.NAME}: group must be a multiple of 16, at most 256, found {self.group}")

    def run(self, model: ir.Model) -> list[Finding]:
        return self.on(model)

    def on(self, model: ir.Model, fit: Fit | None = None) -> list[Finding]:
        """`run`, with weights rounded by `fit` where that can serve the layer."""
        layers = list(find_layers(model))
        candidates = [layer for layer in layers if not layer.convolves]
        choice = Choice(self.layers, self.skip, self.min_size)
        choice.check([node_name(layer.node) for layer in candidates])
        why_not = {id(layer): choice.why_not(layer, None) or _unserved(layer.node) for layer in candidates}
        chosen = [layer for layer in candidates if why_not[id(layer)] is None]
        plain = {id(layer): _cannot_fit(layer, model) if fit else "" for layer in chosen}
        fitted = [layer for layer in chosen if plain[id(layer)] is None]
        rounded = fit(model, fitted, self.bits, self._group()) if fitted else {}
        made: dict[tuple, tuple[list[ir.Value], str]] = {}
        findings = [
            self.declined(node_name(layer.node), "a convolution, which reads each weight often", layer.before)
            for layer in layers
            if layer.convolves
        ]
        for layer in candidates:
            name, before = node_name(layer.node), layer.before
            if reason := why_not[id(layer)]:
                findings.append(self.declined(name, reason, before))
                continue
            key = (layer.key, attribute(layer.node, "alpha", 1.0))
            if key not in made:
                own = rounded.get(layer.key) if plain[id(layer)] is None else None
                made[key] = self._constants(model, layer, own)
            constants, told = made[key]
            _put(model, layer, constants, self.bits)
            why = f"; to the nearest: {plain[id(layer)]}" if plain[id(layer)] else ""
            reason = f"{self.bits} bits, groups of {self._group()}: {told}{why}"
            findings.append(self.applied(name, reason, before, f"{DOMAIN}.{NAME}"))
        return findings

    def _group(self) -> int:
        return self.group or GROUP[self.bits]

    def _constants(self, model: ir.Model, layer: Layer, fitted: Rounded | None) -> tuple[list[ir.Value], str]:
        """Q, S, Z and I of a node, and what rounding does."""
        if fitted is not None:
            values, scale = fitted.values, fitted.scale
            told = (
                f"output error {100 * fitted.before:.3f} % with weights rounded to the nearest, "
                f"{100 * fitted.after:.3f} % as fitted"
            )
        else:
            factor = np.float32(attribute(layer.node, "alpha", 1.0))
            weight = layer.weight[:, 0].astype(np.float32) * factor
            values, scale, lost = nearest(weight, self.bits, self._group())
            told = f"{100 * lost:.2g} % of the weights' norm lost"
        index = np.arange(values.shape[1]) // self._group()
        arrays = {"q": values, "scale": scale, "zero": np.zeros(scale.shape, np.int8), "group": index}
        name = layer.value.name
        return [add_constant(model, f"{name}_{part}", array) for part, array in arrays.items()], told


def restore(model: ir.Model) -> None:
    """Gives products back their float32 weights, for targets whose kernels multiply no others."""
    for node in [n for n in model.graph if is_op(n, NAME, domain=DOMAIN)]:
        constants = [const_array(value) for value in node.inputs[1:]]
        weight = add_constant(model, f"{node.name}_weight", np.ascontiguousarray(dequantised(*constants).T))
        replace_node(node, ir.node("MatMul", [node.inputs[0], weight], name=node.name))


def _unserved(node: ir.Node) -> str | None:
    """What of a Gemm stands in the way, or None."""
    return "its input is transposed" if attribute(node, "transA", 0) else None


def _cannot_fit(layer: Layer, model: ir.Model) -> str | None:
    """Why calibration cannot serve `layer`, or None."""
    if layer.node.graph is not model.graph:
        return "it is in a subgraph, whose values calibration cannot see"
    return cannot(layer)


def _put(model: ir.Model, layer: Layer, constants: list[ir.Value], bits: int) -> None:
    """The quantised product where `layer`'s node stands, with the sum of a Gemm behind it."""
    node, attributes = layer.node, {"bits": ir.AttrInt64("bits", bits)}
    if layer.before == layer.after and not attribute(node, "scattered", 0):
        attributes |= {name: ir.AttrInt64(name, attribute(node, name)) for name in ("n", "m", "block")}
    x, added = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    beta = attribute(node, "beta", 1.0)
    if added is None or not beta:
        replace_with_op(model, node, NAME, [x, *constants], attributes)
        return
    ensure_function(model, NAME)
    product = _before(node, NAME, [x, *constants], attributes, domain=DOMAIN, name=node.name)
    if beta != 1.0:
        factor = add_constant(model, f"{node.name}_beta", np.array(beta, np.float32))
        added = _before(node, "Mul", [added, factor], name=f"{node.name}/beta")
    replace_node(node, ir.node("Add", [product, added], name=f"{node.name}/bias"))


def _before(node: ir.Node, op: str, inputs: list[ir.Value], attributes=None, **kind) -> ir.Value:
    """The result of a new node in front of `node`, of the type of what it computes with."""
    new = ir.node(op, inputs, attributes, **kind)
    like = node.outputs[0] if op == NAME else inputs[0]
    name = f"{node.outputs[0].name}/{op}"
    new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = name, like.type, like.shape
    node.graph.insert_before(node, new)
    return new.outputs[0]
