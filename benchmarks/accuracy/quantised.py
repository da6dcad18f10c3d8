"""How near networks stay to themselves in int8, quantised with calibration data alone.

    python -m benchmarks.accuracy.quantised minilm [--patterns 2:4x32 ...] [--layers attention]
    python -m benchmarks.accuracy.quantised weights [--bits 8 4]
    python -m benchmarks.accuracy.quantised tiny FOLDER
    python -m benchmarks.accuracy.quantised digits

`minilm`: all-MiniLM-L6-v2 on the texts of `minilm`, mean cosine of the sentence embeddings to those in
float32; with `--patterns` pruned, too, once jointly and once pruned first and rounded then.  `tiny`: the
networks of MLPerf Tiny in FOLDER; ResNet-8 on the crops of `resnet8`, beside the published int8 file, the
keyword spotter and the autoencoder on smooth random spectra, since no sounds are at hand.  `digits`: labels
that are right, on the networks of `digits`.  "plain" is what most tools do: ranges from the least to the
largest value, weights rounded to the nearest, nothing migrated, every layer in int8.  `weights`: MiniLM with
its weights alone rounded, to the nearest and on calibration data.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from sparsec.compiler.calibration import read_batches
from sparsec.compiler.ingest import form, load, opset
from sparsec.compiler.prune import PruneRequest, prune_on
from sparsec.compiler.quantize import QuantizeRequest, quantize_on
from sparsec.compiler.weight_quant import calibrated
from sparsec.passes import parse_pipeline, run_pipeline
from sparsec.passes.prune import parse_pattern

from . import digits, minilm, resnet8
from .store import add

PLAIN = {"ranges": "minmax", "rounding": "nearest", "migrate": False, "floats": 0.0}
WAYS = {"plain": PLAIN, "sparsec": {}}
TINY_CALIBRATION, TINY_TEST = 256, 1000


def read(path: Path) -> ir.Model:
    model = opset.convert(load.load(str(path)))
    form.infer(model)
    return model


def quantised(path: Path, data: Path, **asked) -> tuple[ir.Model, int, float]:
    """The model, how many of its layers are int8, and seconds."""
    model, start = read(path), time.process_time()
    feeds = read_batches(str(data), model)
    made = quantize_on(model, feeds, QuantizeRequest(str(data), **asked), lambda line: None)
    layers = sum(layer["precision"] == "int8" for layer in made.layers)
    return model, layers, time.process_time() - start


def record(network: str, pattern: str, way: str, score: dict, layers: int, seconds: float) -> None:
    add(
        "int8",
        {
            "network": network,
            "pattern": pattern,
            "way": way,
            **score,
            "layers": layers,
            "seconds": round(seconds),
        },
    )
    print(f"{network} {pattern} {way}: {score}, {layers} layers in int8, {seconds:.0f} s", flush=True)


@contextmanager
def sentences(texts: int) -> Iterator[tuple[Path, Path, Callable[[ir.Model], dict]]]:
    """MiniLM, `texts` sentences to calibrate it with, and what scores a model of it on others."""
    every = minilm.texts()
    test = minilm.tokens(every[minilm.CALIBRATION : minilm.CALIBRATION + minilm.TEST])
    with tempfile.TemporaryDirectory() as folder:
        dense, data = Path(folder) / "dense.onnx", Path(folder) / "data.npz"
        minilm.export(dense)
        np.savez(data, **minilm.tokens(every[:texts]))
        reference = minilm.embeddings(dense.read_bytes(), test)

        def score(model: ir.Model) -> dict:
            found = minilm.embeddings(ir.to_proto(model).SerializeToString(), test)
            cosines = (found * reference).sum(axis=1)
            return {"cosine": round(float(cosines.mean()), 5), "least": round(float(cosines.min()), 4)}

        yield dense, data, score


def on_weights(bits: list[int], texts: int) -> None:
    with sentences(texts) as (dense, data, score):
        for width in bits:
            pipeline = parse_pipeline(f"quantise-weights{{bits={width}}}")
            for way, calib in (("nearest", None), ("fitted", str(data))):
                model, start = read(dense), time.process_time()
                findings = run_pipeline(model, calibrated(pipeline, calib, lambda line: None))
                layers = sum(f.applied and f.pass_name == pipeline[0].NAME for f in findings)
                seconds = round(time.process_time() - start)
                found = {"bits": width, "way": way, **score(model), "layers": layers, "seconds": seconds}
                add("weights", {"network": "minilm", "pattern": "dense", **found})
                print(f"minilm {found}", flush=True)


def on_minilm(patterns: list[str], texts: int, layers: str) -> None:
    network = "minilm" if layers == "all" else f"minilm {layers}"
    with sentences(texts) as (dense, data, score):
        for pattern in patterns or [""]:
            for way, asked in _ways(pattern).items():
                asked = asked | {"layers": minilm.LAYERS[layers]}
                apart = way == "pruned, then rounded"
                source = pruned(dense, data, pattern, asked["layers"]) if apart else dense
                model, count, seconds = quantised(source, data, **asked)
                record(network, pattern or "dense", way, score(model), count, seconds)


def _ways(pattern: str) -> dict[str, dict]:
    if not pattern:
        return WAYS
    joint = {"pattern": pattern, "method": "sparsegpt", "group": False}
    awp = joint | {"method": "awp"}
    return {"jointly": joint, "jointly by AWP": awp, "pruned, then rounded": {"rounding": "nearest"}}


def pruned(dense: Path, data: Path, pattern: str, layers: str = "*") -> Path:
    """`dense` pruned in float32 by what the joint way uses, in a file beside it."""
    model, path = read(dense), dense.with_name("pruned.onnx")
    request = PruneRequest(pattern, "sparsegpt", str(data), layers=layers, group=False)
    prune_on(model, parse_pattern(pattern), read_batches(str(data), model), request, lambda line: None)
    ir.save(model, path)
    return path


def on_tiny(folder: Path) -> None:
    photographs = resnet8.load_sample_images().images
    middle = photographs[0].shape[1] // 2
    left, right = (
        resnet8.crops([p[:, half] for p in photographs]) for half in (slice(middle), slice(middle, None))
    )
    spectra = {(49, 10, 1): smooth, (640,): lambda n, s, seed: smooth(n, (5, 128), seed).reshape(n, 640)}
    for name in ("ic_resnet8", "kws", "ad"):
        path = folder / f"mlperf_tiny_{name}_fp32.onnx"
        model = read(path)
        shape = tuple(model.graph.inputs[0].shape[1:])
        if name == "ic_resnet8":
            calibration, test = left[:TINY_CALIBRATION], right[:TINY_TEST]
        else:
            calibration, test = (
                spectra[shape](n, shape, s) for n, s in ((TINY_CALIBRATION, 0), (TINY_TEST, 1))
            )
        wanted = resnet8.outputs(model, test)
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary) / "data.npz"
            np.savez(data, **{model.graph.inputs[0].name: calibration})
            for way, asked in WAYS.items():
                made, layers, seconds = quantised(path, data, **asked)
                record(name, "dense", way, agreement(resnet8.outputs(made, test), wanted), layers, seconds)
        if name == "ic_resnet8":
            path = folder / "mlperf_tiny_ic_resnet8_int8_qdq.onnx"
            layers = sum(node.op_type in ("Conv", "MatMul") for node in onnx.load(path).graph.node)
            record(name, "dense", "published", agreement(published(path, test), wanted), layers, 0.0)


def smooth(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 `[count, *shape]`: noise that keeps 0.9 of itself from frame to frame, softer to the right."""
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((count, *shape))
    for at in range(1, shape[0]):
        frames[:, at] = 0.9 * frames[:, at - 1] + 0.436 * frames[:, at]
    loud = 30 / (1 + np.arange(shape[1])) ** 0.5
    return (frames * loud.reshape(shape[1], *[1] * (len(shape) - 2))).astype(np.float32)


def published(path: Path, images: np.ndarray) -> np.ndarray:
    """The outputs of the int8 file, whose input and output are bytes: pixels less 128, probabilities."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    bytes_ = (np.rint(images) - 128).astype(np.int8)
    return session.run(None, {session.get_inputs()[0].name: bytes_})[0].astype(np.float64) + 128


def agreement(found: np.ndarray, wanted: np.ndarray) -> dict:
    """Share of equal answers, and the mean cosine where outputs are no probabilities."""
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (found, wanted))
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    equal = (
        {"equal": round(float((a.argmax(axis=1) == b.argmax(axis=1)).mean()), 4)} if a.shape[1] < 100 else {}
    )
    return equal | {"cosine": round(float(cosine.mean()), 5)}


def on_digits() -> None:
    images, labels = digits.data()
    for name in digits.NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            path, data = Path(folder) / "dense.onnx", Path(folder) / "data.npz"
            known = images[: digits.TRAINED]
            network = digits.trained(
                name, torch.from_numpy(known), torch.from_numpy(labels[: digits.TRAINED])
            )
            digits.export(network, torch.from_numpy(images[:2]), path)
            np.savez(data, x=known)
            test = images[digits.TRAINED :], labels[digits.TRAINED :]
            dense = digits.accuracy(ir.load(path), *test)
            for pattern in ("", "2:4x32"):
                for way, asked in _ways(pattern).items():
                    source = pruned(path, data, pattern) if way == "pruned, then rounded" else path
                    model, layers, seconds = quantised(source, data, **asked)
                    score = {"right": round(digits.accuracy(model, *test), 4), "dense": round(dense, 4)}
                    record(f"digits {name}", pattern or "dense", way, score, layers, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["minilm", "weights", "tiny", "digits"])
    parser.add_argument("folder", type=Path, nargs="?", help="with the networks of MLPerf Tiny")
    parser.add_argument("--patterns", nargs="*", default=[])
    parser.add_argument("--bits", nargs="*", type=int, default=[8, 4])
    parser.add_argument("--layers", choices=minilm.LAYERS, default="all", help="of MiniLM")
    parser.add_argument("--texts", type=int, default=minilm.CALIBRATION, help="to calibrate MiniLM with")
    arguments = parser.parse_args()
    runs: dict[str, Callable[[], None]] = {
        "minilm": lambda: on_minilm(arguments.patterns, arguments.texts, arguments.layers),
        "weights": lambda: on_weights(arguments.bits, arguments.texts),
        "tiny": lambda: on_tiny(arguments.folder),
        "digits": on_digits,
    }
    if arguments.what == "tiny" and arguments.folder is None:
        parser.error("tiny needs the folder of its networks")
    runs[arguments.what]()


if __name__ == "__main__":
    main()
