"""How a network is brought to its pattern while it trains; each is called before every step.

    schedule(module, progress)        progress runs from 0 at the first step to 1 at the last

Whatever the schedule, the masks have the layers' own patterns and nothing leaks through them from
``until`` on, so the rest of the training is spent on the network that will be deployed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune import Pattern, Unstructured
from sparsec.passes.train.modules import sparse_weights


class Schedule(Protocol):
    def __call__(self, module: nn.Module, progress: float) -> None: ...


@dataclass(frozen=True)
class Fixed:
    """The masks stay as they are."""

    def __call__(self, module: nn.Module, progress: float) -> None:
        for *_, masked in sparse_weights(module):
            masked.leak, masked.straight = 0.0, False


@dataclass(frozen=True)
class Regrow:
    """SR-STE (Zhou et al., 2021): pruned weights see the gradient, decay, and come back where they win.

    Masks are chosen anew at every step until ``until``; ``decay`` is the paper's lambda, which it sets to
    2e-4 for SGD.
    """

    until: float = 0.33
    decay: float = 2e-4

    def __call__(self, module: nn.Module, progress: float) -> None:
        for _, layer, tensor, masked in sparse_weights(module):
            masked.leak, masked.decay = 0.0, self.decay
            if masked.straight or progress < self.until:  # a last choice on the way out
                masked.choose(layer.parametrizations[tensor].original)
            masked.straight = progress < self.until


@dataclass(frozen=True)
class MaskDecay:
    """Progressive gradient flow by mask decay (Bambhaniya et al., 2024): ``W * (m + beta (1 - m))``.

    ``beta`` falls from 1 in a straight line to 0 at ``until``, while masks are chosen anew at every step.
    """

    until: float = 0.5

    def __call__(self, module: nn.Module, progress: float) -> None:
        leak = max(0.0, 1 - progress / self.until)
        for _, layer, tensor, masked in sparse_weights(module):
            if leak or masked.leak:
                masked.choose(layer.parametrizations[tensor].original)
            masked.leak, masked.straight = leak, False


@dataclass(frozen=True)
class StructureDecay:
    """Progressive gradient flow by structure decay: the pattern is tightened step by step.

    N:M keeps m-1, then m-2 ... and from ``until`` on n of each group, in equal shares of the time;
    unstructured zeros grow as ``sparsity * (1 - (1 - progress / until)^3)`` (Zhu and Gupta, 2017).
    """

    until: float = 0.5

    def __call__(self, module: nn.Module, progress: float) -> None:
        share = min(1.0, progress / self.until)
        for _, layer, tensor, masked in sparse_weights(module):
            now = _loosened(masked.pattern, share)
            if now is None:
                masked.mask.fill_(True)
            elif share < 1 or now != masked.reached:
                masked.choose(layer.parametrizations[tensor].original, now)
            masked.leak, masked.straight = 0.0, False


def _loosened(pattern: Pattern, share: float) -> Pattern | None:
    """The pattern at ``share`` of the way from dense (None) to ``pattern``."""
    if isinstance(pattern, NM):
        stages = pattern.m - pattern.n
        return NM(pattern.m - min(stages, 1 + int(share * stages)), pattern.m, pattern.block)
    zeros = pattern.sparsity * (1 - (1 - share) ** 3)
    return Unstructured(zeros, pattern.block) if zeros else None
