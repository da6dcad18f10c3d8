"""The demo: two small networks, compiled, run on all test images, beside ONNX Runtime.

    make demo          (or: python examples/digits/demo.py)

Artifacts go to build/demo, so that you can go on with them: ``sparsec inspect build/demo/sparse.sparsec``.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

import sparsec
from sparsec.compiler.cli import measure, text

HERE = Path(__file__).resolve().parent
OUT = HERE.parent.parent / "build" / "demo"
NETWORKS = {"dense": "dense", "sparse": "2:4, one pattern for 16 channels"}


def compile_network(name: str) -> Path:
    """Compile by the command line, as a user would; its table goes to the terminal."""
    artifact = OUT / f"{name}.sparsec"
    command = ["compile", os.path.relpath(HERE / f"{name}.onnx"), "-o", os.path.relpath(artifact)]
    print(f"\n$ sparsec {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "sparsec", *command])
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return artifact


def accuracy(run, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images, one at a time, whose largest logit is the label."""
    right = sum(
        int(np.argmax(run(image[None]))) == label for image, label in zip(images, labels, strict=True)
    )
    return right / len(labels)


def main() -> None:
    start = time.perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    with np.load(HERE / "test.npz") as data:
        images, labels = data["images"].astype(np.float32), data["labels"]

    rows = []
    for name, what in NETWORKS.items():
        artifact = compile_network(name)
        model = sparsec.load(artifact, threads=1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        onnx = HERE / f"{name}.onnx"
        session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
        engines = {
            "sparsec": lambda image, model=model: model({"image": image})["logits"],
            "ONNX Runtime": lambda image, session=session: session.run(None, {"image": image})[0],
        }
        calls = {key: lambda run=run: run(images[:1]) for key, run in engines.items()}
        with measure.pinned(1):
            latency = measure.interleaved(calls, seconds=4)
        for key, run in engines.items():
            size = artifact if key == "sparsec" else onnx
            p50, p90 = (latency[key].percentile(share) * 1e6 for share in (0.5, 0.9))
            share = accuracy(run, images, labels)
            rows.append(
                [
                    what,
                    key,
                    f"{100 * share:.1f} %",
                    f"{p50:.1f} us",
                    f"{p90:.1f} us",
                    text.size(size.stat().st_size),
                ]
            )

    print(f"\n{len(images)} test images, one at a time, one thread; both engines by turns:\n")
    header = ["network", "engine", "accuracy", "p50", "p90", "file"]
    print("\n".join(text.table(header, rows, "<<>>>>")))
    print(f"\nThe demo took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
