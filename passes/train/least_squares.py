"""The best start without training: masks by input power, then weights by least squares, stage after stage.

For a layer ``y = x W^T + b`` of the dense network and its inputs ``x~`` in the network that is pruned so far,
the kept weights solve

    min || x~ V^T + c  -  (x W^T + b) ||^2   over V with the zeros of the mask, and c,

so each stage also mends what the ones before it broke.  With ``H = [x~ 1]^T [x~ 1]`` and
``C = [x~ 1]^T [x 1]`` that is ``V_S = H_SS^-1 (C W^T)_S`` for each set S of kept inputs.  Scores are Wanda's
(Sun et al., 2023): ``|W|^2`` times the mean square of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from sparsec.passes.base import PassError
from sparsec.passes.train.masks import canonical, stored
from sparsec.passes.train.modules import Masked, sparse_weights

# Added to the diagonal of H, as a share of its mean: a guard where inputs are few or equal.
DAMPING = 1e-3
# The layers are fitted in this many stages, in the order in which they run; both networks run once for each,
# and what the layers of a stage do to each other is not seen.
STAGES = 12
# Kept sets that are solved at once; bounds the memory at this many times kept^2 numbers.
AT_ONCE = 16


def refit(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[tuple[torch.Tensor, ...]],
    *,
    autocast: torch.dtype | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Choose the masks of ``student`` anew and fit its kept weights, in place, to the dense ``teacher``.

    The modules have the same layers by name; ``batches`` are tuples of inputs of both, and some thousand
    rows at each layer are wanted.  Layers other than Linear and ungrouped Conv2d keep their masks and
    weights.  ``autocast`` is the type in which the networks run.  PassError where a layer does not run.
    """
    batches = list(batches)
    dense = dict(teacher.named_modules())
    weights = {name: (layer, masked) for name, layer, _, masked in sparse_weights(student) if _can(layer)}
    for _, masked in weights.values():
        masked.leak = 1.0  # dense until its stage has come
    with torch.no_grad():
        with _inputs({name: dense[name] for name in weights}) as seen:
            teacher(*batches[0])
        if missing := weights.keys() - seen.keys():
            raise PassError(f"refit: {min(missing)} does not run for the first batch; name it in skip")
        order = list(seen)
        size = -(-len(order) // STAGES)
        for first in range(0, len(order), size):
            stage = order[first : first + size]
            sums = dict.fromkeys(stage, (0, 0))
            for batch in batches:
                pruned_layers = {name: weights[name][0] for name in stage}
                whole_layers = {name: dense[name] for name in stage}
                with (
                    torch.autocast(batch[0].device.type, autocast, enabled=autocast is not None),
                    _inputs(pruned_layers) as pruned,
                    _inputs(whole_layers) as whole,
                ):
                    student(*batch)
                    teacher(*batch)
                for name, (gram, cross) in sums.items():
                    x, y = _rows(dense[name], pruned[name]), _rows(dense[name], whole[name])
                    sums[name] = gram + (x.T @ x).double(), cross + (x.T @ y).double()
            for name in stage:
                layer, masked = weights[name]
                _solve(layer, masked, dense[name], *sums[name])
                masked.leak = 0.0
            log(f"refit {first + len(stage)} of {len(order)} layers")


def _can(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


@contextmanager
def _inputs(layers: dict[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """A dict that gets each layer's input, by name, in the order in which the layers run."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        for name, layer in layers.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _rows(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Inputs as float32 ``[rows, taps * in + 1]``; the last column is the bias's 1."""
    x = x.float()
    if isinstance(layer, nn.Conv2d):
        patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x = patches.unflatten(1, (layer.in_channels, -1)).permute(0, 3, 2, 1).flatten(2)
    rows = x.reshape(-1, x.shape[-1])
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _solve(layer, masked: Masked, reference: nn.Module, gram: torch.Tensor, cross: torch.Tensor) -> None:
    original = layer.parametrizations["weight"].original
    weight = canonical(reference.weight)
    out, taps, inputs = weight.shape
    rows = gram[-1, -1]
    masked.power = (gram.diagonal()[:-1] / rows).reshape(taps, inputs).to(original)
    masked.choose(reference.weight)
    mean = gram.diagonal()[:-1].mean()
    gram = gram + torch.eye(len(gram), dtype=gram.dtype) * (DAMPING * mean)
    bias = torch.zeros(out) if reference.bias is None else reference.bias
    wanted = torch.cat([weight.reshape(out, -1), bias[:, None]], dim=1).double()
    # Damping pulls towards the dense weights, not towards zero.
    target = cross @ wanted.T + DAMPING * mean * wanted.T
    keep = canonical(masked.mask).reshape(out, -1)
    keep = torch.cat([keep, torch.full((out, 1), reference.bias is not None)], dim=1)
    found = _least_squares(gram, target, keep)
    original.copy_(stored(found[:, :-1].reshape(weight.shape), original))
    if layer.bias is not None:
        layer.bias.copy_(found[:, -1])


def _least_squares(gram: torch.Tensor, target: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """``[out, in]``: each row solves ``gram_SS v = target_S`` for the set S that ``keep`` has there."""
    sets, owner = keep.unique(dim=0, return_inverse=True)
    found = torch.zeros_like(target.T)
    for chosen in range(len(sets)) if len(sets) * 4 <= len(keep) else ():
        kept, channels = sets[chosen].nonzero()[:, 0], (owner == chosen).nonzero()[:, 0]
        factor = torch.linalg.cholesky(gram[kept][:, kept])
        found[channels[:, None], kept] = torch.cholesky_solve(target[kept][:, channels], factor).T
    if len(sets) * 4 > len(keep):  # nearly every channel has a set of its own: solve several at once
        for size in keep.sum(1).unique():
            for channels in (keep.sum(1) == size).nonzero()[:, 0].split(AT_ONCE):
                kept = keep[channels].nonzero()[:, 1].reshape(len(channels), int(size))
                factor = torch.linalg.cholesky(gram[kept[:, :, None], kept[:, None, :]])
                right = target[kept, channels[:, None]].unsqueeze(-1)
                found[channels[:, None], kept] = torch.cholesky_solve(right, factor).squeeze(-1)
    return found
