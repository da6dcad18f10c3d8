"""Which weights stay, for a score of every weight: N:M along the inputs, or the best of the whole layer.

Weights are seen as ``[out, taps, in]``, as everywhere in ``sparsec.passes``: a Linear has one tap, a 3x3
convolution nine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from sparsec.passes.base import PassError
from sparsec.passes.nm_pattern import NM


@dataclass(frozen=True)
class Unstructured:
    """The share ``zeros`` of a layer's weights is zero, wherever they are: ``90%`` keeps one in ten."""

    zeros: float

    def __post_init__(self) -> None:
        if not 0 < self.zeros < 1:
            raise PassError(f"unstructured sparsity: a share between 0 and 1 is required, found {self.zeros}")

    def __str__(self) -> str:
        return f"{100 * self.zeros:g}%"


Pattern = NM | Unstructured


def parse(text: str) -> Pattern:
    """``"2:4"``, ``"2:4x32"`` or ``"90%"`` (of the weights are zero); PassError on other text."""
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    return Unstructured(float(percent[1]) / 100) if percent else NM.parse(text)


def canonical(weight: torch.Tensor) -> torch.Tensor:
    """``[out, in, *kernel]`` as ``[out, taps, in]``, a view where possible."""
    return weight.flatten(2).transpose(1, 2) if weight.ndim > 2 else weight.unsqueeze(1)


def stored(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Back from ``[out, taps, in]`` to the layout of ``like``."""
    return weight.transpose(1, 2).reshape(like.shape) if like.ndim > 2 else weight.squeeze(1)


def best(score: torch.Tensor, pattern: Pattern, groups: int = 1) -> torch.Tensor:
    """True where a weight of ``score [out, taps, in]`` (0 or more) stays.

    N:M keeps in each full group the n inputs whose scores, summed over the channels of the block, are
    highest, the lower input of equals, and all of a tail shorter than m.  ``groups`` is that of a grouped
    convolution; no block crosses from one to the next.
    """
    if isinstance(pattern, Unstructured):
        kept = score.numel() - round(pattern.zeros * score.numel())
        keep = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        keep[score.flatten().argsort(descending=True, stable=True)[:kept]] = True
        return keep.view(score.shape)
    out, taps, inputs = score.shape
    full, per_group = inputs // pattern.m * pattern.m, out // groups
    shared = score[..., :full].reshape(groups, per_group, taps, full)
    shared = pad(shared, (0, 0, 0, 0, 0, -per_group % pattern.block))
    shared = shared.reshape(groups, -1, pattern.block, taps, full // pattern.m, pattern.m).sum(2)
    order = shared.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(shared, dtype=torch.bool).scatter_(-1, order[..., : pattern.n], True)
    keep = keep.flatten(-2).repeat_interleave(pattern.block, dim=1)[:, :per_group]
    whole = torch.ones(score.shape, dtype=torch.bool, device=score.device)
    whole[..., :full] = keep.reshape(out, taps, full)
    return whole
