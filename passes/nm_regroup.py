"""Put output channels that share their zeros beside each other, where that is free.

A pattern that blocks of channels share runs faster than one that each channel has for itself, but a block is
consecutive channels. A network may have been pruned by groups that are not, or its channels may have been
reordered since. Where rows of a weight are zero at the same places and the channels can move (`channels`),
they are sorted by what they keep: the function stays, and `nm_recognise` then sees the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import SparsecPass
from sparsec.passes.channels import ChannelSet, find_channels
from sparsec.passes.dead_channels import SHARED
from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.nm_pattern import BLOCKS, NM
from sparsec.passes.nm_structure import find
from sparsec.passes.permute import permute

LEAST = BLOCKS[1]
"""Rows with the same zeros that make a group worth looking for."""


@dataclass(frozen=True)
class RegroupChannels(SparsecPass):
    NAME: ClassVar[str] = "regroup-channels"
    SUMMARY: ClassVar[str] = "put output channels that share an N:M pattern beside each other"
    EXAMPLE: ClassVar[str] = "regroup-channels"

    def run(self, model: ir.Model) -> list[Finding]:
        findings: list[Finding] = []
        wishes = {layer.node: found for layer in find_layers(model) if (found := _wish(layer)) is not None}
        sets = find_channels(model) if wishes else []
        for node, (old, new) in wishes.items():
            name, kind = node_name(node), node.op_type
            would = f"{new} where it is {old}, were outputs with the same zeros beside each other"
            channels = next((c for c in sets if any(maker.node is node for maker in c.makers)), None)
            if channels is None or channels.refusal:
                reason = channels.refusal if channels else "the channels of its output are not known"
                findings.append(self.declined(name, f"{would}; they cannot move: {reason}", kind))
                continue
            order = _order(channels, node)
            if isinstance(order, str):
                findings.append(self.declined(name, f"{would}; they stay: {order}", kind))
                continue
            permute(model, [(channels, order)])
            sets = find_channels(model)
            told = f"its {channels.size} outputs put in another order, folded into the layers around: "
            findings.append(self.applied(name, f"{told}{new} where it was {old}", kind, kind))
        return findings


def _wish(layer: Layer) -> tuple[NM, NM] | None:
    """The pattern of `layer`, and a better one that it would have with its rows sorted."""
    if layer.refusal is not None or layer.before != layer.standard or layer.groups > 1:
        return None
    mask = _mask(layer)
    if mask.all() or len(np.unique(np.packbits(mask, axis=1), axis=0)) > len(mask) / LEAST:
        return None
    old = find(layer.weight)
    if not isinstance(old, NM) or old.block >= min(SHARED, len(mask)):
        return None
    new = find(layer.weight[_sorted(mask, len(mask))])
    return (old, new) if _better(new, old, layer) else None


def _better(new: object, old: NM, layer: Layer) -> bool:
    k = layer.weight.shape[-1]
    return isinstance(new, NM) and new.block > old.block and new.kept_fraction(k) <= old.kept_fraction(k)


def _mask(layer: Layer) -> np.ndarray:
    """bool `[out, taps * in]`: what is not zero."""
    return layer.weight.reshape(len(layer.weight), -1) != 0


def _sorted(mask: np.ndarray, run: int) -> np.ndarray:
    """An order of rows that stay in their runs: equal ones beside each other, classes that fill wide blocks
    first, so that those behind them start where blocks do."""
    order: list[int] = []
    for start in range(0, len(mask), run):
        rows = np.arange(start, start + run)
        _, which = np.unique(np.packbits(mask[rows], axis=1), axis=0, return_inverse=True)
        counts = np.bincount(which.ravel())
        fills = [max(block for block in BLOCKS if count % block == 0) for count in counts]
        classes = sorted(range(len(counts)), key=lambda c: (-fills[c], -counts[c]))
        order += [row for c in classes for row in rows[which.ravel() == c]]
    return np.array(order)


def _order(channels: ChannelSet, node: ir.Node) -> np.ndarray | str:
    """The order of `channels` that brings the blocks of `node` together, or why there is none."""
    layer = next(maker for maker in channels.makers if maker.node is node)
    order = _sorted(_mask(layer), channels.run)
    old = find(layer.weight)
    if not isinstance(old, NM) or not _better(find(layer.weight[order]), old, layer):
        return f"they move within runs of {channels.run} only"
    others = [(maker, maker.weight[order]) for maker in channels.makers if maker is not layer]
    others += [
        (reader, reader.weight[:, :, _every_inner(order, inner)]) for reader, inner in channels.readers
    ]
    for other, weight in others:
        before, after = find(other.weight, other.groups), find(weight, other.groups)
        if isinstance(before, NM):
            kept = isinstance(after, NM) and (after.n, after.m) == (before.n, before.m)
            if not kept or after.block < min(before.block, SHARED):
                return f"{node_name(other.node)} would lose its pattern {before}"
    return order


def _every_inner(order: np.ndarray, inner: int) -> np.ndarray:
    """The order of single inputs where each channel has `inner` of them."""
    return (order[:, None] * inner + np.arange(inner)).ravel()
