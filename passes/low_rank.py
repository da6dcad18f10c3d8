"""Recognise a product with an N:M weight and a low-rank term beside it.

    Add(NMMatMul(x, W), s * MatMul(MatMul(x, R), L))  ->  NMMatMulLowRank(x, W, R, s * L)

as SLoPe trains them, and as LoRA adapters leave them on a sparse weight; a bias may have been added to the
product or to the term before, and then is added after. Gemm counts as the MatMul and Add that it is. The sum
is the same in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import (
    add_constant,
    attribute,
    const_array,
    const_scalar,
    free_name,
    is_op,
    node_name,
    remove_dead,
    replace_with_op,
)
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.ops import DOMAIN, ensure_function, infer


@dataclass(frozen=True)
class _Term:
    """`layer`'s product times `scale`; `biases` are constants that have been added to it."""

    layer: Layer
    scale: float
    biases: tuple[ir.Value, ...]


@dataclass(frozen=True)
class RecogniseLowRank(SparsecPass):
    NAME: ClassVar[str] = "recognise-low-rank"
    SUMMARY: ClassVar[str] = "find a low-rank term beside an N:M product of the same input (SLoPe, LoRA)"
    EXAMPLE: ClassVar[str] = "recognise-low-rank"

    def run(self, model: ir.Model) -> list[Finding]:
        findings: list[Finding] = []
        layers = {layer.node: layer for layer in find_layers(model)}
        for node in list(model.graph):
            terms = [_term(value, layers) for value in node.inputs] if is_op(node, "Add") else []
            if len(terms) != 2 or None in terms:
                continue
            main, low = sorted(terms, key=lambda term: term.layer.node.domain != DOMAIN)
            inner = layers.get(low.layer.node.inputs[0].producer())
            x = main.layer.node.inputs[0]
            if main.layer.before != main.layer.after or inner is None or inner.node.inputs[0] is not x:
                continue
            name, before = node_name(main.layer.node), "NMMatMul, MatMul, MatMul, Add"
            if reason := _why_not(main, low, inner):
                findings.append(self.declined(name, f"its low-rank term stays beside it: {reason}", before))
                continue
            rank, (k, n) = inner.weight.shape[0], (main.layer.weight.shape[2], main.layer.weight.shape[0])
            _join(model, node, main, low, inner)
            told = f"a term of rank {rank} on [{k}, {n}] joins the product of the same input"
            findings.append(self.applied(name, told, before, f"{DOMAIN}.NMMatMulLowRank"))
        return findings


def _term(value: ir.Value, layers: dict[ir.Node, Layer]) -> _Term | None:
    """The layer behind `value`, through a scalar factor and constants that are added, if nothing else reads
    what lies between."""
    scale, biases = 1.0, []
    while True:
        node = value.producer()
        if node is None or len(value.uses()) != 1 or value.is_graph_output():
            return None
        if node in layers:
            layer = layers[node]
            own = [v for v in node.inputs[2:] if v is not None]
            if own and (scale != 1.0 or const_array(own[0]) is None):
                return None
            return _Term(layer, scale, (*biases, *own))
        if not is_op(node, "Add", "Mul"):
            return None
        constants = [v for v in node.inputs if const_array(v) is not None]
        if len(constants) != 1:
            return None
        value = next(v for v in node.inputs if v is not constants[0])
        factor = const_scalar(constants[0])
        if is_op(node, "Mul"):
            if factor is None or biases:
                return None
            scale *= float(factor)
        elif scale != 1.0:
            return None
        else:
            biases.append(constants[0])


def _why_not(main: _Term, low: _Term, inner: Layer) -> str | None:
    three = (main.layer, low.layer, inner)
    if attribute(main.layer.node, "scattered", 0):
        return "the weight has no n:m pattern"
    if any(layer.convolves for layer in three):
        return "convolutions are not joined"
    if any(layer.standard == "Gemm" and _scaled(layer.node) for layer in three):
        return "a Gemm has alpha, beta or transA"
    if inner.standard == "Gemm" and len(inner.node.inputs) > 2 and inner.node.inputs[2] is not None:
        return "the inner product has a bias"
    if len(inner.node.outputs[0].uses()) > 1 or inner.node.outputs[0].is_graph_output():
        return "its inner product is read elsewhere"
    if inner.node.op_type not in ("MatMul", "Gemm") or low.layer.node.op_type not in ("MatMul", "Gemm"):
        return "it has a pattern of its own"
    if main.scale != 1.0:
        return "the product is scaled"
    rank, (n, _, k) = inner.weight.shape[0], main.layer.weight.shape
    if 2 * rank * (k + n) > k * n:
        return f"rank {rank} is no low one for [{k}, {n}]"
    if any(layer.array.dtype != np.float32 for layer in three):
        return "the kernels compute float32 only"
    return None


def _scaled(node: ir.Node) -> bool:
    wanted = (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
    return any(attribute(node, key, value) != value for key, value in wanted)


def _join(model: ir.Model, root: ir.Node, main: _Term, low: _Term, inner: Layer) -> None:
    def constant(layer: Layer, kind: str, scale: float = 1.0) -> ir.Value:
        columns = np.ascontiguousarray(layer.weight[:, 0, :].T * np.float32(scale))
        return add_constant(model, f"{layer.value.name}_{kind}", columns)

    x = main.layer.node.inputs[0]
    inputs = [
        x,
        constant(main.layer, "sparse"),
        constant(inner, "right"),
        constant(low.layer, "left", low.scale),
    ]
    attributes = {k: ir.AttrInt64(k, attribute(main.layer.node, k)) for k in ("n", "m", "block")}
    biases = [const_array(value) for value in (*main.biases, *low.biases)]
    if not biases:
        replace_with_op(model, root, "NMMatMulLowRank", inputs, attributes).name = main.layer.node.name
        return
    ensure_function(model, "NMMatMulLowRank")
    joined = ir.node("NMMatMulLowRank", inputs, attributes, domain=DOMAIN, name=main.layer.node.name)
    value = joined.outputs[0]
    value.name = free_name(model, f"{root.outputs[0].name}_product")
    value.dtype, value.shape = infer(joined)
    root.graph.insert_before(root, joined)
    old = list(root.inputs)
    bias = add_constant(model, f"{root.outputs[0].name}_bias", sum(biases[1:], biases[0]))
    root.replace_input_with(0, value)
    root.replace_input_with(1, bias)
    remove_dead(old)
