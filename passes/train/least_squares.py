"""The best start without training: every layer pruned so that its output stays near the dense network's.

For a layer ``y = x W^T + b`` of the dense network and its inputs ``x~`` in the network that is pruned so far,
:mod:`sparsec.passes.prune` chooses what stays and solves

    min || x~ V^T + c  -  (x W^T + b) ||^2   over V with the pattern, and c,

from sums over the rows alone.  So each stage also mends what the ones before it broke.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sparsec.passes.base import PassError
from sparsec.passes.prune import Moments, pose, prune
from sparsec.passes.train.masks import canonical, stored
from sparsec.passes.train.modules import Masked, sparse_weights

# The ridge towards the dense weights, as a share of the mean square input: few rows, or equal inputs.
DAMPING = 0.02
# The layers are fitted in this many stages, in the order in which they run; both networks run once for each,
# and what the layers of a stage do to each other is not seen.
STAGES = 12


def refit(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[tuple[torch.Tensor, ...]],
    *,
    method: str = "sparsegpt",
    autocast: torch.dtype | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Choose the masks of ``student`` anew and fit its kept weights, in place, to the dense ``teacher``.

    The modules have the same layers by name; ``batches`` are tuples of inputs of both, and some thousand
    rows at each layer are wanted.  ``method`` is one of ``sparsec.passes.prune.METHODS``.  Layers other than
    Linear and ungrouped Conv2d keep their masks and weights.  ``autocast`` is the type in which the networks
    run.  PassError where a layer does not run.
    """
    batches = list(batches)
    dense = dict(teacher.named_modules())
    layers = {name: (layer, masked) for name, layer, _, masked in sparse_weights(student) if _can(layer)}
    for _, masked in layers.values():
        masked.leak = 1.0  # dense until its stage has come
    with torch.no_grad():
        with _inputs({name: dense[name] for name in layers}) as seen:
            teacher(*batches[0])
        if missing := layers.keys() - seen.keys():
            raise PassError(f"refit: {min(missing)} does not run for the first batch; name it in skip")
        order = list(seen)
        size = -(-len(order) // STAGES)
        for first in range(0, len(order), size):
            stage = {name: (layers[name][0], dense[name]) for name in order[first : first + size]}
            for name, moments in _moments(student, teacher, stage, batches, autocast).items():
                _solve(*layers[name], dense[name], moments, method)
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


def _moments(student, teacher, stage, batches, autocast) -> dict[str, Moments]:
    """Sums over the student's inputs and the teacher's outputs of each layer of ``stage``."""
    sums: dict[str, Moments] = {}
    for batch in batches:
        with (
            torch.autocast(batch[0].device.type, autocast, enabled=autocast is not None),
            _inputs({name: layer for name, (layer, _) in stage.items()}) as pruned,
            _inputs({name: reference for name, (_, reference) in stage.items()}) as whole,
        ):
            student(*batch)
            teacher(*batch)
        for name, (_, reference) in stage.items():
            x = _rows(reference, pruned[name])
            y = _rows(reference, whole[name]) @ canonical(reference.weight).flatten(1).T
            y = y if reference.bias is None else y + reference.bias
            if name not in sums:
                sums[name] = Moments.empty(x.shape[1], y.shape[1])
            sums[name].add(x.cpu().numpy(), y.cpu().numpy())
    return sums


def _rows(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Inputs as float32 ``[rows, taps * in]``."""
    x = x.float()
    if isinstance(layer, nn.Conv2d):
        patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x = patches.unflatten(1, (layer.in_channels, -1)).permute(0, 3, 2, 1).flatten(2)
    return x.reshape(-1, x.shape[-1])


def _solve(layer: nn.Module, masked: Masked, reference: nn.Module, moments: Moments, method: str) -> None:
    original = layer.parametrizations["weight"].original
    shape = canonical(original).shape
    dense = canonical(reference.weight).flatten(1).double().cpu().numpy()
    free = reference.bias is not None
    bias = reference.bias.double().cpu().numpy() if free else np.zeros(len(dense))
    problem = pose(moments, dense, free_bias=free, bias=bias, damping=DAMPING)
    found = prune(problem, masked.pattern, method, taps=shape[1])
    weight = torch.from_numpy(found.weight).to(original).view(shape)
    original.copy_(stored(weight, original))
    masked.mask.copy_(stored(torch.from_numpy(found.mask).to(original.device).view(shape), original))
    power = torch.from_numpy(np.diag(moments.xx) / moments.count)
    masked.power, masked.leak = power.to(original).view(shape[1:]), 0.0
    if free:
        layer.bias.copy_(torch.from_numpy((moments.y - found.weight @ moments.x) / moments.count))
