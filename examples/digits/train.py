"""Train the two networks of the demo on scikit-learn's digits and write them as ONNX.

    python examples/digits/train.py [FOLDER]

Writes ``dense.onnx``, ``sparse.onnx`` (the same network, 2 of 4 weights kept in groups along the input
channels, with one pattern for each 16 output channels) and ``test.npz`` (images and labels that
training did not see).  Seeded and single-threaded: the same torch on the same machine writes the same
files.  Takes about a minute.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

HERE = Path(__file__).resolve().parent
N, M, BLOCK = 2, 4, 16
EPOCHS, FINE_TUNE_EPOCHS, BATCH = 60, 60, 64


def network() -> nn.Sequential:
    """1x8x8 pixels of 0..16 -> 10 logits; 48,442 parameters, 46,080 of them in layers that become sparse."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(192, 10),
    )


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, then test images and labels: 1437 and 360, split by a fixed shuffle."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images = torch.tensor(digits.images[order], dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target[order])
    return images[360:], labels[360:], images[:360], labels[:360]


def mask_2of4(weight: torch.Tensor) -> torch.Tensor:
    """1 where a weight stays: per tap and block of output channels, the strongest N of M input channels."""
    outputs, inputs, height, width = weight.shape
    blocks = weight.detach().abs().reshape(outputs // BLOCK, BLOCK, inputs // M, M, height, width)
    strength = blocks.sum(dim=1, keepdim=True)
    rank = strength.argsort(dim=3, descending=True).argsort(dim=3)
    return (rank < N).expand_as(blocks).reshape(weight.shape).to(weight.dtype)


def train(module: nn.Sequential, epochs: int, rate: float, masks: dict[nn.Module, torch.Tensor]) -> None:
    """Adam with a cosine schedule; masked weights are set to zero after every step."""
    images, labels, *_ = data()
    optimizer = torch.optim.Adam(module.parameters(), rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(module(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for layer, mask in masks.items():
                    layer.weight *= mask
        schedule.step()


def accuracy(module: nn.Sequential) -> float:
    *_, images, labels = data()
    with torch.no_grad():
        return (module(images).argmax(1) == labels).float().mean().item()


def export(module: nn.Sequential, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(1, 1, 8, 8),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def main(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    module = network()
    train(module, EPOCHS, 2e-3, {})
    export(module, folder / "dense.onnx")
    print(f"dense   test accuracy {accuracy(module):.4f}")

    convolutions = [layer for layer in module if isinstance(layer, nn.Conv2d) and layer.in_channels % M == 0]
    masks = {layer: mask_2of4(layer.weight) for layer in convolutions}
    with torch.no_grad():
        for layer, mask in masks.items():
            layer.weight *= mask
    print(f"pruned  test accuracy {accuracy(module):.4f}")
    module.train()
    train(module, FINE_TUNE_EPOCHS, 1e-3, masks)
    export(module, folder / "sparse.onnx")
    print(f"tuned   test accuracy {accuracy(module):.4f}")

    *_, images, labels = data()
    np.savez_compressed(folder / "test.npz", images=images.numpy().astype(np.uint8), labels=labels.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
