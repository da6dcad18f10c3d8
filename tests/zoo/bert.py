"""BERT encoder (Devlin et al., 2018) with attention written out, as most model code has it."""

import math

import torch
from torch import nn

from .network import Network, finish, tokens


class SelfAttention(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x, mask):
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.size)
        weights = torch.softmax(scores + mask, dim=-1)
        joined = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous()
        return self.output(joined.view(x.shape))


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.attention = SelfAttention(hidden, heads)
        self.norm1 = nn.LayerNorm(hidden, eps=1e-12)
        self.wide = nn.Linear(hidden, 4 * hidden)
        self.gelu = nn.GELU()
        self.narrow = nn.Linear(4 * hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, x, mask):
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.narrow(self.gelu(self.wide(x))))


class Bert(nn.Module):
    def __init__(self, layers: int, hidden: int, heads: int, vocabulary: int, positions: int = 512):
        super().__init__()
        self.words = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(positions, hidden)
        self.types = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.layers = nn.ModuleList(Layer(hidden, heads) for _ in range(layers))
        self.pooler = nn.Linear(hidden, hidden)

    def forward(self, input_ids, attention_mask):
        position = torch.arange(input_ids.shape[1]).unsqueeze(0)
        x = self.words(input_ids) + self.positions(position) + self.types(torch.zeros_like(input_ids))
        x = self.norm(x)
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


def bert(small: bool, length: int | None = None, batch: int = 1) -> Network:
    """BERT-base, 12 layers of 768, 128 tokens (small: 2 of 64, 16 tokens)."""
    length = length or (16 if small else 128)
    layers, hidden, heads, vocabulary = (2, 64, 2, 1000) if small else (12, 768, 12, 30522)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[:, length - length // 4 :] = 0  # a quarter is padding
    inputs = {"input_ids": tokens(vocabulary, length, batch), "attention_mask": mask}
    outputs = ("last_hidden_state", "pooled")
    return finish(lambda: Bert(layers, hidden, heads, vocabulary), inputs, outputs)
