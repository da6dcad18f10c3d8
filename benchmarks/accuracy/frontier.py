"""Speed against accuracy: patterns layer by layer for one latency after the other, on all-MiniLM-L6-v2.

    python -m benchmarks.accuracy.frontier prune FOLDER [--patterns 2:4 2:4x32 ...] [--latencies 0.9 0.83 ...]
    python -m benchmarks.accuracy.frontier time FOLDER

`prune` measures layers and sensitivities once, prunes to each latency (a share of the dense one) in one shot,
and puts the models into FOLDER; `time` compiles them and runs them by turns with the dense one.  Texts and
score are those of `minilm`.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

import sparsec
from sparsec.compiler.allocation.search import survey
from sparsec.compiler.prune import PruneRequest
from sparsec.passes.prune import parse_pattern

from .minilm import CALIBRATION, TEST, embeddings, export, texts, tokens
from .store import add
from .turns import best

ROUNDS = 40


def prune(folder: Path, patterns: list[str], latencies: list[float], method: str, layers: str) -> None:
    sentences = texts()
    test = tokens(sentences[CALIBRATION : CALIBRATION + TEST])
    folder.mkdir(parents=True, exist_ok=True)
    dense, calibration = folder / "dense.onnx", folder / "calibration.npz"
    export(dense)
    np.savez(calibration, **tokens(sentences[:CALIBRATION]))
    reference = embeddings(dense.read_bytes(), test)
    request = PruneRequest(patterns[0], method, str(calibration), layers=layers)
    known = survey(ir.load(dense), request, [parse_pattern(p) for p in patterns], None, print)
    for latency in latencies:
        point = next((p for p in known.space.points if known.space.latency(p) <= latency), None)
        if point is None:
            print(f"no choice of patterns reaches {latency}")
            continue
        made, _ = known.attempt(point)
        file = folder / f"{latency}.onnx"
        ir.save(made.model, file)
        pruned = embeddings(file.read_bytes(), test)
        row = {
            "patterns": " ".join(patterns),
            "latency": latency,
            "method": method,
            "cosine": round(float((pruned * reference).sum(axis=1).mean()), 4),
            "predicted": round(known.space.latency(point), 4),
            "layers": dict(Counter(map(str, known.space.chosen(point).values()))),
        }
        file.with_suffix(".json").write_text(json.dumps(row))
        print(row, flush=True)


def measure(folder: Path) -> None:
    """Adds a row for each pruned model of the folder; the best of `ROUNDS` turns, on one thread."""
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    names = ["dense", *(str(row["latency"]) for row in rows)]
    models = {}
    for name in names:
        artifact = folder / f"{name}.sparsec"
        if not artifact.exists():
            sparsec.compile(
                folder / f"{name}.onnx", artifact, target="native", dims={"batch": 1, "length": 128}
            )
        models[name] = sparsec.load(artifact, threads=1)
    times = best(models, ROUNDS)
    for row in rows:
        milliseconds = times[str(row["latency"])]
        row |= {"ms": round(milliseconds, 2), "dense_ms": round(times["dense"], 2)}
        row["speed"] = round(times["dense"] / milliseconds, 3)
        add("frontier", row)
        print(f"{row['patterns']} {row['latency']}: {row['speed']:.2f}x, cosine {row['cosine']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["prune", "time"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patterns", nargs="+", default=["2:4", "2:4x32", "3:4x32"])
    parser.add_argument("--latencies", nargs="+", type=float, default=[0.9, 0.83, 0.75, 0.65])
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--layers", default="*", metavar="GLOB", help="only these; all others stay dense")
    arguments = parser.parse_args()
    if arguments.step == "prune":
        chosen = arguments.patterns, arguments.latencies, arguments.method, arguments.layers
        prune(arguments.folder, *chosen)
    else:
        measure(arguments.folder)


if __name__ == "__main__":
    main()
