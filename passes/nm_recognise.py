"""Recognise N:M patterns in constant weights.

    MatMul(x, W)         -> NMMatMul<n, m, block>(x, W)
    Gemm<...>(x, W, c)   -> NMGemm<..., n, m, block>(x, W, c)
    Conv<...>(x, W, b)   -> NMConv<..., n, m, block>(x, W, b), and ConvTranspose likewise
    MatMulInteger(x, W)  -> NMMatMulInteger<n, m, block>(x, W), and ConvInteger likewise

where the zeros of W keep to n:m along the reduction axis; a weight of mostly zeros that keeps to none is
`scattered`, n of m on average, and one with a few outliers has the pattern of a longer group: 33:64 for 2:4.
Nothing is computed differently: the weight stays as it is, and the body of the new operator is the one that
it replaces. A constant left operand (MatMul(W, x)) is declined, for swapping the operands would add two
Transposes to the model; so are other ranks and dtypes than the kernels take, and a pattern in an operator
without N:M form (RNN, GRU, LSTM).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import (
    Layer,
    as_initializer,
    find_integers,
    find_layers,
    find_unserved,
    put,
)
from sparsec.passes.nm_pattern import MIN_ZEROS, NM
from sparsec.passes.nm_structure import NearMiss, Unfinished, cover, find, scattered, unfinished

MIN_SIZE = 64
"""Fewer weights than this make no layer worth a kernel, and any few zeros among them look like a pattern."""

SLACK = 1.3
"""A pattern that keeps this much more than the non-zeros loses to skipping single weights."""

TOLD_ZEROS = 0.25
"""A layer with a smaller share of zeros is simply dense: that is no decision, so there is no finding."""


@dataclass(frozen=True)
class RecogniseNM(SparsecPass):
    NAME: ClassVar[str] = "recognise-nm"
    SUMMARY: ClassVar[str] = "find N:M patterns (2:4, 1:8x32, ...) in constant weights"
    EXAMPLE: ClassVar[str] = "recognise-nm"

    def run(self, model: ir.Model) -> list[Finding]:
        findings: list[Finding] = []
        known: dict[tuple[object, ...], NM | NearMiss | Unfinished | str] = {}
        made: dict[ir.Value, ir.Value] = {}
        for layer in itertools.chain(find_layers(model), find_integers(model), find_unserved(model)):
            if layer.before != layer.standard:
                continue  # is an N:M operator already
            if layer.key not in known:
                found = find(layer.weight, layer.groups)
                if not isinstance(found, NM):
                    found = unfinished(layer.weight, layer.groups) or found
                known[layer.key] = found
            found, name = known[layer.key], node_name(layer.node)
            zeros = 1 - np.count_nonzero(layer.array) / layer.array.size
            able = layer.refusal is None and layer.array.size >= MIN_SIZE
            k = layer.weight.shape[-1]
            near = found if isinstance(found, NearMiss) else None
            nm = cover(layer.weight, near, layer.groups) if near else found
            loose = not isinstance(nm, NM) or nm.kept_fraction(k) > SLACK * (1 - zeros)
            if able and loose and k > 1 and MIN_ZEROS <= zeros < 1:
                pattern = scattered(layer.weight, layer.groups)
                put(model, layer, pattern, as_initializer(model, layer, made))
                reason = f"{pattern}: keeps {100 * (1 - zeros):.1f} % of the weights; {found}"
                findings.append(self.applied(name, reason, layer.before, layer.after))
            elif able and isinstance(nm, NM):
                put(model, layer, nm, as_initializer(model, layer, made))
                reason = _worth(nm, layer) + (f", outliers among them; {near}" if near else "")
                findings.append(self.applied(name, reason, layer.before, layer.after))
            elif not isinstance(found, str) or zeros >= TOLD_ZEROS:
                findings.append(self.declined(name, _why_not(found, layer), layer.before))
        return findings


def _worth(nm: NM, layer: Layer) -> str:
    k, read = layer.weight.shape[-1], np.any(layer.weight, axis=(0, 1))
    text = f"{nm}: keeps {100 * nm.kept_fraction(k):.1f} % of the weights"
    if layer.groups == 1 and nm.kept(k) == np.count_nonzero(read):
        return f"{text}; {np.count_nonzero(~read)} of {k} input channels have only zeros and are skipped"
    return text + tail(nm, k)


def tail(nm: NM, k: int) -> str:
    """A clause about the inputs that are in no full group; empty when m divides k."""
    left = k % nm.m
    if not left:
        return ""
    said = "input makes" if left == 1 else "inputs make"
    return (
        f"; the last {left} of {k} {said} no group of {nm.m} and stay{'s' if left == 1 else ''} dense: "
        f"with {k - left} or {k - left + nm.m} inputs none would"
    )


def _why_not(found: NM | NearMiss | Unfinished | str, layer: Layer) -> str:
    if layer.refusal:
        return f"{layer.refusal}; its zeros: {found}"
    if isinstance(found, NM):
        return (
            f"{found}, but {layer.array.size} weights are too few for an N:M kernel; {MIN_SIZE} are required"
        )
    return str(found)
