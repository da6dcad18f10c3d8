"""Export a torch network to ONNX, compile it, and compare the artifact with torch.

    python examples/export_from_torch.py [FOLDER]

Needs torch.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sparsec


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


def main(folder: Path) -> None:
    module, image = network(), torch.randn(1, 3, 32, 32)
    onnx, artifact = folder / "network.onnx", folder / "network.sparsec"
    program = torch.onnx.export(
        module, (image,), input_names=["image"], output_names=["logits"], dynamo=True, verbose=False
    )
    program.save(onnx, external_data=False)
    subprocess.run([sys.executable, "-m", "sparsec", "compile", onnx, "-o", artifact], check=True)

    with torch.no_grad():
        expected = module(image).numpy()
    with sparsec.load(artifact) as model:
        found = model(image)["logits"]  # torch tensors go in without a copy
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"largest difference to torch: {error:.1e} of the output's scale")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
