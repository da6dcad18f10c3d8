"""Threshold the activations of a network, see what it costs in accuracy, and bound the change.

    python examples/threshold.py [FOLDER]

The network is the demo's.  ``threshold{kind=hard,tau=T}`` sets activations up to T to zero after each ReLU.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import sparsec

DIGITS = Path(__file__).resolve().parent / "digits"


def accuracy(artifact: Path) -> float:
    with np.load(DIGITS / "test.npz") as data:
        images, labels = data["images"].astype(np.float32), data["labels"]
    with sparsec.load(artifact) as model:
        found = [int(np.argmax(model(image[None])["logits"])) for image in images]
    return float(np.mean(found == labels))


def main(folder: Path) -> None:
    command = [sys.executable, "-m", "sparsec"]
    source = DIGITS / "dense.onnx"
    calibration = folder / "calibration.npz"
    with np.load(DIGITS / "test.npz") as data:
        np.savez(calibration, image=data["images"][:1].astype(np.float32))

    for tau in (0.1, 1.0):
        spec = f"threshold{{kind=hard,tau={tau}}}"
        artifact = folder / f"tau{tau}.sparsec"
        options = ["--passes", spec, "--calib", calibration, "--target", "native", "-o", artifact]
        subprocess.run([*command, "compile", source, *options], check=True, stdout=subprocess.DEVNULL)
        print(f"tau {tau}: accuracy {100 * accuracy(artifact):.1f} %")

    # As a guard in a script: nothing is written if an output changes by more than a tenth of its scale.
    options = ["--passes", "threshold{kind=hard,tau=5}", "--calib", calibration, "--max-error", "0.1"]
    done = subprocess.run([*command, "sparsify", source, *options, "-o", folder / "changed.onnx"])
    print(f"a threshold of 5 is refused: exit status {done.returncode}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
