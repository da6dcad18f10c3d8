"""Which weights stay, for a score of every weight; the same as ``sparsec.passes.prune``, on torch's tensors.

Weights are seen as ``[out, taps, in]``, as everywhere in ``sparsec.passes``: a Linear has one tap, a 3x3
convolution nine.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from sparsec.passes.prune import Pattern, Unstructured


def canonical(weight: torch.Tensor) -> torch.Tensor:
    """``[out, in, *kernel]`` as ``[out, taps, in]``, a view where possible."""
    return weight.flatten(2).transpose(1, 2) if weight.ndim > 2 else weight.unsqueeze(1)


def stored(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Back from ``[out, taps, in]`` to the layout of ``like``."""
    return weight.transpose(1, 2).reshape(like.shape) if like.ndim > 2 else weight.squeeze(1)


def best(score: torch.Tensor, pattern: Pattern, groups: int = 1) -> torch.Tensor:
    """True where a weight of ``score [out, taps, in]`` (0 or more) stays.

    In each full group of m inputs (unstructured: among all of a row) the n weights whose scores, summed over
    the channels of the block, are highest stay, the lower input of equals, and all of a tail shorter than m.
    ``groups`` is that of a grouped convolution; no block crosses from one to the next.
    """
    out, taps, inputs = score.shape
    if isinstance(pattern, Unstructured):
        columns = taps * inputs
        kept = min(max(round((1 - pattern.sparsity) * columns), 1), columns - 1)
        return _top(score.reshape(out, 1, columns), kept, pattern.block, groups).view(score.shape)
    full = inputs // pattern.m * pattern.m
    keep = torch.ones(score.shape, dtype=torch.bool, device=score.device)
    grouped = score[..., :full].reshape(out, -1, pattern.m)
    keep[..., :full] = _top(grouped, pattern.n, pattern.block, groups).view(out, taps, full)
    return keep


def _top(score: torch.Tensor, kept: int, block: int, groups: int) -> torch.Tensor:
    """The ``kept`` highest along the last axis of ``[out, sets, m]``, the same in each block of ``out``."""
    out, sets, m = score.shape
    per_group = out // groups
    shared = pad(score.view(groups, per_group, sets, m), (0, 0, 0, 0, 0, -per_group % block))
    shared = shared.unflatten(1, (-1, block)).sum(2)
    order = shared.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(shared, dtype=torch.bool).scatter_(-1, order[..., :kept], True)
    return keep.repeat_interleave(block, dim=1)[:, :per_group].reshape(score.shape)
