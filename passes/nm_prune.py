"""Prune weights to an N:M pattern by magnitude, and put the N:M operators in: `nm{n=2,m=4,block=32}`.

In each group of m inputs, for each block of output channels and each kernel tap, the n positions with the
highest score stay and the rest becomes zero; a tail shorter than m is left alone. The score of a position is,
over the weights that share it in the block,

    magnitude   sum |w|   every channel has its say, and one large weight does not decide for the whole block
    energy      sum w^2   keeps the most energy, that is, makes the least Frobenius norm of W - pruned W

(the same thing for block=1). NaN counts as larger than any number, so that it stays to be seen; of equal
scores the lower input stays. Layers that read one weight in the same way are given one pruned weight;
whatever else reads it (an embedding tied to the output head, a layer that is skipped) keeps the original.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import PassError, SparsecPass
from sparsec.passes.findings import Finding
from sparsec.passes.graph import add_constant, node_name
from sparsec.passes.nm_choice import MIN_SIZE, Choice
from sparsec.passes.nm_layers import Layer, find_layers, origin, put
from sparsec.passes.nm_pattern import BLOCKS, NM
from sparsec.passes.nm_recognise import tail
from sparsec.passes.prune.layout import Layout

_SCORES = {"magnitude": np.abs, "energy": np.square}


@dataclass(frozen=True)
class PruneNM(SparsecPass):
    """`n` of every `m` inputs stay, shared by `block` outputs; `layers` and `skip` choose by node name."""

    NAME: ClassVar[str] = "nm"
    SUMMARY: ClassVar[str] = "prune the weights of MatMul, Gemm, Conv and ConvTranspose to an N:M pattern"
    EXAMPLE: ClassVar[str] = "nm{n=2,m=4,block=16,skip=*head*|*embed*}"

    n: int = field(metadata={"help": "weights kept in each group of m input channels"})
    m: int = field(metadata={"help": "length of a group"})
    # 16 and more share the dense schedule on every CPU level and reach the ideal speed-up.
    block: int = field(
        default=32,
        metadata={"help": "consecutive output channels that share the kept positions", "choices": BLOCKS},
    )
    method: str = field(
        default="magnitude",
        metadata={
            "help": "score of a position: sum of |w| or of w^2 over the block",
            "choices": tuple(_SCORES),
        },
    )
    min_size: int = field(default=MIN_SIZE, metadata={"help": "layers with fewer weights stay dense"})
    only: str = field(
        default="all",
        metadata={
            "help": "sparse: only layers that have an N:M pattern already, to tighten it",
            "choices": ("all", "sparse"),
        },
    )
    layers: str = field(default="*", metadata={"help": "only nodes with such names: globs, joined by |"})
    skip: str = field(default="", metadata={"help": "but not these nodes: globs, joined by |"})

    def __post_init__(self) -> None:
        NM(self.n, self.m, self.block)
        if self.method not in _SCORES:
            raise PassError(f"nm: method must be one of {', '.join(_SCORES)}, found {self.method!r}")
        if self.min_size < 0:
            raise PassError(f"nm: min_size must be 0 or more, found {self.min_size}")

    def run(self, model: ir.Model) -> list[Finding]:
        candidates = list(find_layers(model))
        choice = Choice(self.layers, self.skip, self.min_size)
        choice.check([node_name(layer.node) for layer in candidates])
        outcomes: list[tuple[str, ir.Value, Layer, NM, str | None]] = []
        pruned: dict[tuple[object, ...], tuple[ir.Value, float]] = {}
        for layer in candidates:
            nm = NM(self.n, self.m, self.block).within(layer.weight.shape[0] // layer.groups)
            reason = choice.why_not(layer, nm)
            if reason is None and self.only == "sparse" and layer.before == layer.standard:
                reason = "it has no pattern, and only=sparse"
            outcomes.append((node_name(layer.node), origin(layer.value), layer, nm, reason))
            if reason is None:
                if layer.key not in pruned:
                    pruned[layer.key] = self._prune(model, layer, nm)
                put(model, layer, nm, pruned[layer.key][0])
        # Only now is it known what still reads an original weight.
        findings: list[Finding] = []
        for name, source, layer, nm, reason in outcomes:
            if reason:
                findings.append(self.declined(name, reason, layer.before))
            else:
                reason = self._report(layer, nm, pruned[layer.key][1], source)
                findings.append(self.applied(name, reason, layer.before, layer.after))
        return findings

    def _report(self, layer: Layer, nm: NM, energy: float, source: ir.Value) -> str:
        k = layer.weight.shape[-1]
        text = (
            f"{nm} by {self.method}: keeps {100 * nm.kept_fraction(k):.1f} % of the weights and "
            f"{100 * energy:.1f} % of their energy (sum of squares){tail(nm, k)}"
        )
        if source.uses() or source.is_graph_output():
            text += f"; a copy: {source.name} stays unpruned for what else reads it"
        return text

    def _prune(self, model: ir.Model, layer: Layer, nm: NM) -> tuple[ir.Value, float]:
        weight = layer.weight
        keep = mask(weight, nm, layer.groups, self.method)
        array = layer.stored(np.where(keep, weight, np.zeros((), weight.dtype)))
        name = layer.value.name.removesuffix("_pruned") + "_pruned"
        return add_constant(model, name, array), _energy(weight, keep)


def mask(weight: np.ndarray, nm: NM, groups: int = 1, method: str = "magnitude") -> np.ndarray:
    """True where a weight `[out, taps, in]` stays; exactly n positions in each full group, the tail whole."""
    out, taps, k = weight.shape
    score = _SCORES[method](weight.astype(np.float64)).reshape(groups, out // groups, taps * k)
    layout = Layout.of(nm, out // groups, k, taps)
    keep = [layout.spread(layout.best(rows[:, layout.order])) for rows in score]
    return np.concatenate([layout.restore(rows) for rows in keep]).reshape(weight.shape)


def _energy(weight: np.ndarray, keep: np.ndarray) -> float:
    """Kept share of the sum of squares, of the finite weights; 1 where there is nothing to lose."""
    square = np.square(np.where(np.isfinite(weight), weight, 0).astype(np.float64))
    total = square.sum()
    return float(square[keep].sum() / total) if total else 1.0
