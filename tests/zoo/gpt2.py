"""GPT-2 (Radford et al., 2019): a prefill, and one decoding step on a key-value cache."""

import math

import torch
from torch import nn

from .network import Network, finish, tokens


class Conv1D(nn.Module):
    """A linear layer with its weight stored [inputs, outputs], as the published checkpoints have it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(0.02 * torch.randn(outputs))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


def gelu(x):
    """The tanh form, written out as in the original code."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int, positions: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden)
        self.qkv = Conv1D(hidden, 3 * hidden)
        self.proj = Conv1D(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.wide = Conv1D(hidden, 4 * hidden)
        self.narrow = Conv1D(4 * hidden, hidden)
        causal = torch.tril(torch.ones(positions, positions, dtype=torch.bool))
        self.register_buffer("causal", causal[None, None], persistent=False)

    def split(self, x):
        batch, length, hidden = x.shape
        return x.view(batch, length, self.heads, hidden // self.heads).transpose(1, 2)

    def forward(self, x, past):
        query, key, value = (self.split(part) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        total, new = key.shape[2], x.shape[1]
        visible = self.causal[:, :, total - new : total, :total]
        lowest = torch.full([], torch.finfo(scores.dtype).min)
        weights = torch.softmax(torch.where(visible, scores, lowest), dim=-1)
        y = (weights @ value).transpose(1, 2).reshape(x.shape)
        x = x + self.proj(y)
        return x + self.narrow(gelu(self.wide(self.norm2(x)))), key, value


class GPT2(nn.Module):
    """``forward(input_ids, *past)`` -> logits and, if a past was given, each layer's keys and values."""

    def __init__(self, layers: int, hidden: int, heads: int, vocabulary: int, positions: int):
        super().__init__()
        self.words = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(positions, hidden)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(hidden, heads, positions) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, input_ids, *past):
        start = past[0].shape[2] if past else 0
        position = torch.arange(start, start + input_ids.shape[1])
        x = self.words(input_ids) + self.positions(position)
        present = []
        for index, block in enumerate(self.blocks):
            x, key, value = block(x, past[2 * index : 2 * index + 2] or None)
            present += [key, value]
        logits = self.norm(x) @ self.words.weight.T  # tied to the embedding
        return (logits, *present) if past else logits


SMALL = (2, 64, 2, 500, 64)  # layers, hidden, heads, vocabulary, positions
FULL = (12, 768, 12, 50257, 1024)


def gpt2_prefill(small: bool, length: int | None = None, batch: int = 1) -> Network:
    """64 tokens at once (small: 12)."""
    sizes = SMALL if small else FULL
    ids = tokens(sizes[3], length or (12 if small else 64), batch)
    return finish(lambda: GPT2(*sizes), {"input_ids": ids}, ("logits",))


def gpt2_decode(small: bool, past: int | None = None, batch: int = 1) -> Network:
    """One new token after ``past`` earlier ones, 64 by default (small: 12)."""
    sizes = SMALL if small else FULL
    layers, hidden, heads, vocabulary, _ = sizes
    generator = torch.Generator().manual_seed(2)
    inputs = {"input_ids": tokens(vocabulary, 1, batch)}
    shape = (batch, heads, past or (12 if small else 64), hidden // heads)
    names = [f"{part}_{index}" for index in range(layers) for part in ("key", "value")]
    inputs |= {f"past_{name}": torch.randn(shape, generator=generator) for name in names}
    return finish(lambda: GPT2(*sizes), inputs, ("logits", *(f"present_{name}" for name in names)))
