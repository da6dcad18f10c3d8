"""Put sparsemax into a transformer in place of softmax, and count the attention weights that vanish.

    python examples/sparsemax_transformer.py [FOLDER]

Needs torch.  The weights here are random; a trained network wants fine-tuning after the change.
"""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sparsec


class Layer(nn.Module):
    """One encoder layer that also returns its attention weights."""

    def __init__(self, hidden: int = 64, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, x):
        batch, length, hidden = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(hidden // self.heads)
        weights = torch.softmax(4 * scores, dim=-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(batch, length, hidden))
        return x + self.mlp(self.norm2(x)), weights


def main(folder: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 32, 64)
    onnx = folder / "layer.onnx"
    program = torch.onnx.export(
        Layer().eval(), (x,), input_names=["x"], output_names=["y", "weights"], dynamo=True, verbose=False
    )
    program.save(onnx, external_data=False)

    # The pass can be named on the way to an artifact ...
    command = [sys.executable, "-m", "sparsec"]
    artifact = folder / "layer.sparsec"
    subprocess.run([*command, "compile", onnx, "--passes", "sparsemax", "-o", artifact], check=True)
    # ... or give a new ONNX file, which ONNX Runtime runs as well, and which says how the output changed.
    changed = folder / "layer-sparsemax.onnx"
    subprocess.run([*command, "sparsify", onnx, "--passes", "sparsemax", "-o", changed], check=True)

    with sparsec.load(artifact) as model:
        weights = model(x)["weights"]
    zeros = np.count_nonzero(weights == 0) / weights.size
    print(f"{100 * zeros:.0f} % of the attention weights are exactly zero")
    print(f"rows sum to one within {np.abs(weights.sum(-1) - 1).max():.0e}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
