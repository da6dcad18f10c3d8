"""Vision transformer ViT-S/16 (Dosovitskiy et al., 2020; size S of Touvron et al., 2020)."""

import torch
from torch import nn

from .network import Network, finish, image


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def attention(self, x):
        batch, length, hidden = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, hidden // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).reshape(batch, length, hidden))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, size: int, patch: int, layers: int, hidden: int, heads: int, classes: int):
        super().__init__()
        self.patches = nn.Conv2d(3, hidden, patch, stride=patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, hidden))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, hidden))
        self.blocks = nn.Sequential(*(Block(hidden, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_s16(small: bool, batch: int = 1) -> Network:
    """12 layers of 384, 224x224 in patches of 16 (small: 2 of 48, 32x32 in patches of 8)."""
    size, *rest = (32, 8, 2, 48, 3, 10) if small else (224, 16, 12, 384, 6, 1000)
    return finish(lambda: ViT(size, *rest), {"image": image(3, size, batch)}, ("logits",))
