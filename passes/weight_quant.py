"""Round the weights of matrix products to 8 or 4 bits: `quantise-weights{bits=4,group=32}`.

    MatMul(x, W)  ->  WeightQuantMatMul<bits>(x, Q, S, Z, I),    W ~ transpose((Q - Z) * S)

and likewise Gemm, NMMatMul and NMGemm; activations stay as they are. Neighbouring input channels of an output
channel are a group with one scale. Its sign puts the largest magnitude at the end of the range that has one
number more (-128, -8); its size is that of a few candidates with the least squared error; it is a bfloat16,
which costs nothing since it is chosen before the weights are rounded. Zeros stay zeros, and so do patterns.
"""

from __future__ import annotations

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

BITS = (8, 4)
#: Group where none is asked for: 4 bits need a scale for fewer weights.
GROUP = {8: 64, 4: 32}
#: Scales that are tried, relative to the one that clips nothing.
_CANDIDATES = {8: (1.0, 0.96, 0.92), 4: (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)}
#: Weights at a time: what is computed of them should stay in a cache.
_CHUNK = 1 << 18


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
        layers = list(find_layers(model))
        candidates = [layer for layer in layers if not layer.convolves]
        choice = Choice(self.layers, self.skip, self.min_size)
        choice.check([node_name(layer.node) for layer in candidates])
        made: dict[tuple, tuple[list[ir.Value], float]] = {}
        findings = [
            self.declined(node_name(layer.node), "a convolution, which reads each weight often", layer.before)
            for layer in layers
            if layer.convolves
        ]
        for layer in candidates:
            name, before = node_name(layer.node), layer.before
            if reason := choice.why_not(layer, None) or _unserved(layer.node):
                findings.append(self.declined(name, reason, before))
                continue
            key = (layer.key, attribute(layer.node, "alpha", 1.0))
            if key not in made:
                made[key] = self._constants(model, layer)
            constants, error = made[key]
            _put(model, layer, constants, self.bits)
            reason = (
                f"{self.bits} bits, groups of {self._group()}: {100 * error:.2g} % of the weights' norm lost"
            )
            findings.append(self.applied(name, reason, before, f"{DOMAIN}.{NAME}"))
        return findings

    def _group(self) -> int:
        return self.group or GROUP[self.bits]

    def _constants(self, model: ir.Model, layer: Layer) -> tuple[list[ir.Value], float]:
        weight = layer.weight[:, 0].astype(np.float32) * np.float32(attribute(layer.node, "alpha", 1.0))
        values, scale, error = quantise(weight, self.bits, self._group())
        index = np.arange(weight.shape[1]) // self._group()
        arrays = {"q": values, "scale": scale, "zero": np.zeros(scale.shape, np.int8), "group": index}
        name = layer.value.name
        constants = [add_constant(model, f"{name}_{part}", array) for part, array in arrays.items()]
        return constants, error


def restore(model: ir.Model) -> None:
    """Gives products back their float32 weights, for targets whose kernels multiply no others."""
    for node in [n for n in model.graph if is_op(n, NAME, domain=DOMAIN)]:
        constants = [const_array(value) for value in node.inputs[1:]]
        weight = add_constant(model, f"{node.name}_weight", np.ascontiguousarray(dequantised(*constants).T))
        replace_node(node, ir.node("MatMul", [node.inputs[0], weight], name=node.name))


def quantise(weight: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, float]:
    """int8 values `[n, k]` and float32 scales `[n, groups]` of float32 `weight [n, k]`, and what is lost.

    What is lost is relative, in the Frobenius norm.
    """
    n, k = weight.shape
    count, rows = -(-k // group), max(1, _CHUNK // k)
    values, scale = np.empty((n, k), np.int8), np.empty((n, count), np.float32)
    lost = total = 0.0
    for start in range(0, n, rows):
        part = weight[start : start + rows]
        padded = np.zeros((len(part), count * group), np.float32)
        padded[:, :k] = part
        groups = padded.reshape(len(part), count, group)
        best, error = _best_scales(groups, bits)
        q = _rounded(groups, best, bits)
        values[start : start + rows] = q.reshape(len(part), -1)[:, :k]
        scale[start : start + rows] = best[..., 0]
        lost += float(error.sum(dtype=np.float64))
        total += float(np.square(part, dtype=np.float64).sum())
    return values, scale, (lost / total) ** 0.5 if total else 0.0


def _best_scales(groups: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The scales `[..., 1]` of `groups [..., group]` with the least squared error, and that error."""
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)
    base = -largest / np.float32(1 << bits - 1)
    best = error = None
    for factor in _CANDIDATES[bits]:
        scale = _bfloat16(base * np.float32(factor))
        off = _rounded(groups, scale, bits) * scale
        off -= groups
        found = np.einsum("...i,...i->...", off, off)
        if best is None:
            best, error = scale, found
        else:
            better = found < error
            best, error = np.where(better[..., None], scale, best), np.where(better, found, error)
    return best, error


def _rounded(groups: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """The nearest integers to `groups / scale`, as float32; 0 where the scale is 0."""
    most = 1 << bits - 1
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > 1e-30)
    return np.clip(np.rint(groups * inverse), -most, most - 1)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest numbers that have 8 bits; ties away from zero."""
    return ((values.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def _unserved(node: ir.Node) -> str | None:
    """What of a Gemm stands in the way, or None."""
    return "its input is transposed" if attribute(node, "transA", 0) else None


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
    new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = kind["name"], like.type, like.shape
    node.graph.insert_before(node, new)
    return new.outputs[0]
