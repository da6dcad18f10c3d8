"""An encoder made of torch's own ``nn.TransformerEncoderLayer``."""

import torch
from torch import nn

from .network import Network, finish


class Encoder(nn.Module):
    def __init__(self, layers: int, hidden: int, heads: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, heads, 4 * hidden, activation="gelu", batch_first=True, norm_first=index % 2 == 1
            )
            for index in range(layers)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def transformer_encoder(small: bool, length: int | None = None, batch: int = 1) -> Network:
    """Post-norm and pre-norm layers by turns; 4 of 256 on 64 positions (small: 2 of 32 on 12)."""
    layers, hidden, heads, default = (2, 32, 4, 12) if small else (4, 256, 8, 64)
    x = torch.randn(batch, length or default, hidden, generator=torch.Generator().manual_seed(1))
    return finish(lambda: Encoder(layers, hidden, heads), {"x": x}, ("y",))
