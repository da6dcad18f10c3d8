"""What a zoo builder returns, and how random weights are made to behave like trained ones."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Network:
    """``module(*inputs.values())`` gives the tensors named by ``outputs``, in order."""

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]


def finish(make, inputs: dict[str, torch.Tensor], outputs: tuple[str, ...], seed: int = 0) -> Network:
    """Build with seeded weights and fit the normalisation layers to them.

    Fresh weights shrink the signal from layer to layer until only biases are left, and a compiler
    could then be wrong without anyone noticing.  So weights get the variance 1 / fan_in, batch
    statistics are measured once, and scales and shifts of all normalisation layers are drawn around
    1 and 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.uniform_(layer.weight, 0.6, 1.4)
                nn.init.normal_(layer.bias, 0.0, 0.1)
            elif isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.data *= 3**0.5  # from torch's variance 1 / (3 fan_in) to 1 / fan_in
        batch_norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        if batch_norms:
            for layer in batch_norms:
                layer.momentum = 1.0
            module.train()
            with torch.no_grad():
                module(*(torch.randn(4, *value.shape[1:]) for value in inputs.values()))
    return Network(module.eval(), inputs, outputs)


def image(channels: int, size: int, batch: int = 1) -> torch.Tensor:
    """A seeded random image batch, NCHW float32."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(vocabulary: int, length: int, batch: int = 1) -> torch.Tensor:
    """Seeded random token numbers, int64 [batch, length]."""
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))
