"""Structured pruning: which channels between layers go, so that both sides become smaller dense layers.

    channels:50%    half of the channels of every set that can lose some (`channels`, `channel_removal`)

The layers that read a set are looked at together: `lasso` tells from the sum of their problems, on the dense
model's inputs, which channels stay. Pruning then is a pattern as others are, with its support given: the
walk refits what stays on the inputs that the pruned model gives. Nothing reads the other channels any more,
and `dead_channels` removes them from all layers and constants.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import PassError
from sparsec.passes.channel_removal import why_not
from sparsec.passes.channels import ChannelSet, find_channels
from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_choice import Choice
from sparsec.passes.prune.distortion import problems
from sparsec.passes.prune.lasso import select, shares
from sparsec.passes.prune.layout import Columns
from sparsec.passes.prune.places import cannot
from sparsec.passes.prune.walk import Observe, Settings

NAME = "channels"
_TEXT = re.compile(r"channels:(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Channels:
    """The share `sparsity` of the channels between layers goes."""

    sparsity: float

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise PassError(f"channels: more than 0% and less than 100% is required, found {self}")

    @classmethod
    def parse(cls, text: str) -> Channels | None:
        """`channels:50%`; None for other text."""
        match = _TEXT.fullmatch(text.strip())
        return cls(float(match[1]) / 100) if match else None

    def __str__(self) -> str:
        return f"channels:{100 * self.sparsity:g}%"

    def left(self, size: int) -> int:
        """How many of `size` stay: one at least."""
        return max(1, round((1 - self.sparsity) * size))


def choose_channels(
    model: ir.Model,
    pattern: Channels,
    dense: Observe,
    settings: Settings,
    choice: Choice,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Columns], list[Finding]]:
    """The pattern of each layer, by the name of its node, that reads channels of which some go; and a finding
    for each set. `dense` observes `model`, which is not changed."""
    patterns: dict[str, Columns] = {}
    findings = []
    for channels in find_channels(model):
        if not channels.readers or channels.size < 2:
            continue
        name, kind = node_name(channels.makers[0].node), channels.makers[0].before
        reason = why_not(channels) or _unwilling(channels, choice)
        if reason is not None:
            findings.append(
                Finding(NAME, name, "declined", f"all of its channels stay: {reason}", kind, kind)
            )
            continue
        log(f"choose among the {channels.size} channels of {name}")
        kept = _select(channels, pattern.left(channels.size), dense, settings)
        for layer, inner in channels.readers:
            patterns[node_name(layer.node)] = Columns(np.repeat(kept, inner), str(pattern))
        readers = ", ".join(node_name(layer.node) for layer, _ in channels.readers)
        told = f"{int(kept.sum())} of {channels.size} channels stay for {readers}"
        findings.append(Finding(NAME, name, "applied", told, kind, kind))
    return patterns, findings


def _unwilling(channels: ChannelSet, choice: Choice) -> str | None:
    """Why a layer that reads the channels cannot do without some, or None."""
    for layer, _ in channels.readers:
        if (reason := choice.why_not(layer, None) or cannot(layer)) is not None:
            return f"{node_name(layer.node)} reads them all: {reason}"
    return None


def _select(channels: ChannelSet, count: int, dense: Observe, settings: Settings) -> np.ndarray:
    """bool `[size]`: by the sum of what LASSO minimises over all readers."""
    inner, wanted = np.zeros((channels.size, channels.size)), np.zeros(channels.size)
    posed = problems([layer for layer, _ in channels.readers], dense, settings)
    for (layer, entries), problem in zip(channels.readers, posed, strict=True):
        _, taps, inputs = layer.weight.shape
        found = shares(problem, np.tile(np.arange(inputs) // entries, taps))
        inner, wanted = inner + found[0], wanted + found[1]
    return select(inner, wanted, count)
