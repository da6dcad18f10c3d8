"""Two networks that read handwritten digits, pruned with calibration data alone: accuracy by labels.

    python -m benchmarks.accuracy.digits [--patterns 2:4 2:4x16 ...] [--methods magnitude- search ...]

scikit-learn's digits (8x8 pixels), 1,000 of them to train and to calibrate, the other 797 for the score.  A
method with `-` behind it goes without reconstruction.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from torch import nn

from sparsec.compiler.prune import PruneRequest, prune_model

from .store import add

TRAINED, STEPS, BATCH = 1000, 600, 128
PATTERNS = ("2:4", "2:4x4", "2:4x16", "2:4x32", "1:4", "3:4x32")
METHODS = ("magnitude-", "wanda-", "sparsegpt", "search")
NETWORKS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    ),
    "convnet": lambda: nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    ),
}  # fmt: skip


def data() -> tuple[np.ndarray, np.ndarray]:
    """float32 `[1797, 1, 8, 8]` in 0..1 and labels, in a seeded order."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return (found.images[order, None] / 16).astype(np.float32), found.target[order]


def trained(name: str, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,))
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def accuracy(model: ir.Model, images: np.ndarray, labels: np.ndarray) -> float:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"x": images})[0].argmax(axis=1) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    arguments = parser.parse_args()
    images, labels = data()
    test, truth = images[TRAINED:], labels[TRAINED:]
    for name in arguments.networks:
        network = trained(name, torch.from_numpy(images[:TRAINED]), torch.from_numpy(labels[:TRAINED]))
        with tempfile.TemporaryDirectory() as folder:
            file, calibration = Path(folder) / "dense.onnx", Path(folder) / "calibration.npz"
            np.savez(calibration, x=images[:TRAINED])
            export(network, torch.from_numpy(images[:2]), file)
            dense = accuracy(ir.load(file), test, truth)
            for pattern in arguments.patterns:
                for method in arguments.methods:
                    model = ir.load(file)
                    reconstruct = not method.endswith("-")
                    request = PruneRequest(
                        pattern, method.removesuffix("-"), str(calibration), reconstruct=reconstruct
                    )
                    prune_model(model, request, lambda line: None)
                    result = {
                        "network": name,
                        "pattern": pattern,
                        "method": method,
                        "dense": round(dense, 4),
                        "pruned": round(accuracy(model, test, truth), 4),
                    }
                    add("digits", result)
                    print(f"{name} {pattern} {method}: {result['pruned']} of {result['dense']}", flush=True)


def export(network: nn.Module, x: torch.Tensor, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (x,),
            str(file),
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
            opset_version=18,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
