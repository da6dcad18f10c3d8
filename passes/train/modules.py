"""Put a pattern on the weights of a torch module, and take it off again with the zeros left in."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from sparsec.passes.base import PassError
from sparsec.passes.findings import Finding
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune import Pattern, parse_pattern
from sparsec.passes.train.masks import best, canonical, stored

# The weights that can take a pattern: [out, in, *kernel] each, and x @ W.T or a convolution with it.
WEIGHTS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "weight"),
    (nn.Conv1d, "weight"),
    (nn.Conv2d, "weight"),
    (nn.Conv3d, "weight"),
    (nn.MultiheadAttention, "in_proj_weight"),
)


class Masked(nn.Module):
    """The parametrisation: what the layer computes with is ``W * (mask + leak * (1 - mask))``.

    ``leak`` 0 is the deployed network.  With ``straight`` the gradient passes to pruned weights as if they
    were there, and ``decay`` pulls them to zero: SR-STE (Zhou et al., 2021, equation 9),
    ``dL/dW = dL/d(mask * W) + decay * (1 - mask) * W``.  ``power`` is the mean square of each input,
    ``[taps, in]`` or a number; it weighs the score of a weight as Wanda does.
    """

    def __init__(self, pattern: Pattern, weight: torch.Tensor, groups: int):
        super().__init__()
        self.pattern, self.groups = pattern, groups
        self.leak, self.straight, self.decay = 0.0, False, 0.0
        self.register_buffer("power", torch.ones((), dtype=weight.dtype, device=weight.device))
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.choose(weight)

    def choose(self, weight: torch.Tensor, pattern: Pattern | None = None) -> None:
        """The mask of ``pattern`` (default: the layer's own) that keeps the most ``power * W^2``."""
        self.reached = pattern or self.pattern
        with torch.no_grad():
            score = canonical(weight).square() * self.power
            self.mask.copy_(stored(best(score, self.reached, self.groups), weight))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        kind = weight.device.type
        if torch.is_autocast_enabled(
            kind
        ):  # first, so that half the bytes are masked, forwards and backwards
            weight = weight.to(torch.get_autocast_dtype(kind))
        if self.straight:
            return _StraightThrough.apply(weight, self.mask, self.decay)
        return torch.where(self.mask, weight, self.leak * weight if self.leak else 0.0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, mask, decay):
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx, gradient):
        weight, mask = ctx.saved_tensors
        return gradient + torch.where(mask, 0.0, ctx.decay * weight), None, None


def sparsify(
    module: nn.Module,
    pattern: str | Pattern,
    *,
    layers: str = "*",
    skip: str = "",
    min_size: int = 1024,
) -> list[Finding]:
    """Give the weights of Linear, Conv and MultiheadAttention layers ``pattern``, in place, by magnitude.

    ``pattern`` is ``"2:4"``, ``"2:4x32"`` (32 output channels share the kept inputs), ``"90%"`` (zeros,
    unstructured), or such an object.  ``layers`` and ``skip`` choose by name, globs joined by ``|``.  The
    dense weights stay behind the masks and can be trained; :func:`finish` makes the zeros final.  A weight
    that is masked already gets the new pattern.  Returns one finding for each candidate; PassError where
    none takes the pattern.
    """
    wanted = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    findings = []
    for name, layer, tensor in list(_candidates(module)):
        weight = _original(layer, tensor)
        groups = getattr(layer, "groups", 1)
        own = wanted.within(weight.shape[0] // groups) if isinstance(wanted, NM) else wanted
        reason = _why_not(name, weight, own, layers, skip, min_size)
        before = type(layer).__name__.removeprefix("Parametrized")
        said = name or before  # the module may be a layer itself
        if reason:
            findings.append(Finding("train", said, "declined", reason, before, before))
            continue
        if parametrize.is_parametrized(layer, tensor):
            _unmask(layer, tensor)
        masked = Masked(own, weight, groups)
        # unsafe: it need not prove on a probe that dtype and shape stay; torch.where keeps both.
        parametrize.register_parametrization(layer, tensor, masked, unsafe=True)
        kept = f"{own}: keeps {100 * masked.mask.float().mean().item():.1f} % of {weight.numel():,} weights"
        findings.append(Finding("train", said, "applied", kept, before, f"{before} {own}"))
    if not any(finding.applied for finding in findings):
        why = "; ".join(f"{finding.node}: {finding.reason}" for finding in findings[:5])
        raise PassError(f"train: no layer takes the pattern {wanted}: {why or 'no Linear or Conv was found'}")
    return findings


def _candidates(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for name, layer in module.named_modules():
        for kind, tensor in WEIGHTS:
            if isinstance(layer, kind) and _original(layer, tensor) is not None:
                yield name, layer, tensor


def _original(layer: nn.Module, tensor: str) -> torch.Tensor | None:
    if parametrize.is_parametrized(layer, tensor):
        return layer.parametrizations[tensor].original
    return getattr(layer, tensor)


def _why_not(name: str, weight: torch.Tensor, pattern: Pattern, layers, skip, min_size) -> str | None:
    if not _matches(name, layers):
        return f"not among layers={layers}"
    if _matches(name, skip):
        return f"named by skip={skip}"
    if weight.numel() < min_size:
        return f"{weight.numel()} weights are fewer than min_size={min_size}"
    if isinstance(pattern, NM) and weight.shape[1] < pattern.m:
        return f"{weight.shape[1]} input channels are fewer than m={pattern.m}"
    return None


def _matches(name: str, globs: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs.split("|") if glob)


def sparse_weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Masked]]:
    """``(name, layer, tensor name, mask)`` of every weight with a pattern, in the order of the modules."""
    for name, layer, tensor in _candidates(module):
        if parametrize.is_parametrized(layer, tensor):
            for masked in layer.parametrizations[tensor]:
                if isinstance(masked, Masked):
                    yield name, layer, tensor, masked


def finish(module: nn.Module) -> nn.Module:
    """Make the zeros final, in place: plain weights again, without masks.  Returns ``module``.

    A weight that was tied to another parameter (an embedding) becomes one of its own, so that only the
    layer that was given the pattern has it.
    """
    for _, layer, tensor, masked in list(sparse_weights(module)):
        masked.leak, masked.straight = 0.0, False
        weight = getattr(layer, tensor).detach().clone()
        trained = layer.parametrizations[tensor].original.requires_grad
        _unmask(layer, tensor)
        setattr(layer, tensor, nn.Parameter(weight, requires_grad=trained))
    return module


def _unmask(layer: nn.Module, tensor: str) -> None:
    """Take the mask off; the dense weight is the layer's own again."""
    # torch takes the property off the class, which a deep copy of the layer shares.
    kind = type(layer)
    layer.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
    # leave_parametrized=True would write through to what the weight is tied to.
    parametrize.remove_parametrizations(layer, tensor, leave_parametrized=False)
