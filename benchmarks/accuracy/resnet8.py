"""How often MLPerf Tiny's ResNet-8 pruned with calibration data says what the dense one says, in one shot.

    python -m benchmarks.accuracy.resnet8 MODEL.onnx [--pattern 2:4] [--sweeps 1 3]

Inputs are 32x32 crops of scikit-learn's two photographs at several scales, their left halves to calibrate and
their right halves for the score. The network was trained on single objects, which such crops seldom show: on
many of them the dense model itself is hardly sure, and its first and second answer change places by little.
So agreement is told by how sure the dense model is. Results are added to
``benchmarks/results/accuracy.json``.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from sklearn.datasets import load_sample_images

from sparsec.compiler.ingest import form, load, opset
from sparsec.compiler.prune import PruneRequest, prune_model

from .store import add

SIZE, STRIDE, SCALES, TEST = 32, 8, (1, 2, 3, 4, 6, 8), 1000
SURE = (0.0, 0.5, 0.8, 0.95)  # the least confidence of the dense model


def crops(photographs: list[np.ndarray]) -> np.ndarray:
    """float32 `[crops, 32, 32, 3]`, 0 to 255, in a seeded order, shrunk by averages."""
    found = []
    for scale in SCALES:
        for photograph in photographs:
            height, width = (size // scale for size in photograph.shape[:2])
            cut = photograph[: height * scale, : width * scale].astype(np.float32)
            small = cut.reshape(height, scale, width, scale, 3).mean(axis=(1, 3))
            found += [
                small[y : y + SIZE, x : x + SIZE]
                for y in range(0, height - SIZE + 1, STRIDE)
                for x in range(0, width - SIZE + 1, STRIDE)
            ]
    return np.stack(found)[np.random.default_rng(0).permutation(len(found))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--images", type=int, default=256, help="to calibrate with")
    parser.add_argument("--sweeps", type=int, nargs="+", default=[1, 3])
    arguments = parser.parse_args()
    photographs = load_sample_images().images
    middle = photographs[0].shape[1] // 2
    calibration = crops([p[:, :middle] for p in photographs])[: arguments.images]
    test = crops([p[:, middle:] for p in photographs])[:TEST]
    dense = opset.convert(load.load(str(arguments.model)))
    form.infer(dense)
    wanted = outputs(dense, test)
    for sweeps in arguments.sweeps:
        model, start = dense.clone(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "calibration.npz"
            np.savez(data, **{dense.graph.inputs[0].name: calibration})
            request = PruneRequest(arguments.pattern, "search", str(data), sweeps=sweeps)
            _, layers = prune_model(model, request, lambda line: None)
        seconds = time.process_time() - start
        result = {
            "pattern": arguments.pattern,
            "sweeps": sweeps,
            "images": arguments.images,
            "agreement": agreement(outputs(model, test), wanted),
            "median_confidence": round(float(np.median(wanted.max(axis=1))), 3),
            "error": round(float(np.mean([layer["error_after"] for layer in layers])), 4),
            "layers": len(layers),
            "seconds": round(seconds),
        }
        add("resnet8", result)
        equal = ", ".join(f"{100 * a['equal']:.1f} % at {a['sure']:.2f}" for a in result["agreement"])
        print(f"{arguments.pattern}, {sweeps} sweeps: equal {equal}; {seconds:.0f} s", flush=True)


def outputs(model: ir.Model, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def agreement(got: np.ndarray, wanted: np.ndarray) -> list[dict[str, float]]:
    """The share of equal answers where the dense model is at least so sure, and how many images these are."""
    same, sure = got.argmax(axis=1) == wanted.argmax(axis=1), wanted.max(axis=1)
    return [
        {"sure": at, "images": int((sure >= at).sum()), "equal": round(float(same[sure >= at].mean()), 4)}
        for at in SURE
    ]


if __name__ == "__main__":
    main()
