"""Measure compiled models beside ONNX Runtime: by turns, pinned, p50 and p90, on 1 and 2 threads.

    make bench
    make bench ARGS="--models mlp,resnet18 --threads 1 --seconds 2"

ONNX Runtime always runs the dense model: zeros do not make it faster.  Results go to benchmarks/results,
as JSON and as a Markdown table made from it.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import onnxruntime
from models import Subject, subjects

import sparsec
from sparsec.compiler.cli import measure, text, work
from sparsec.compiler.cli.bench import inputs, reference
from sparsec.compiler.request import CompileRequest
from sparsec.runtime.errors import SparsecError

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    asked = arguments()
    chosen = [s for s in subjects() if not asked.models or s.name in asked.models]
    if not chosen:
        known = ", ".join(dict.fromkeys(s.name for s in subjects()))
        sys.exit(f"benchmarks: no such model; there are {known}")
    found = {"machine": machine(), "date": date.today().isoformat(), "rows": []}
    asked.out.mkdir(parents=True, exist_ok=True)
    for subject in chosen:
        print(f"{subject.name} {subject.variant}", file=sys.stderr, flush=True)
        found["rows"] += measured(subject, asked)
        # After every model, so that an interrupted run keeps what it has.
        (asked.out / "models.json").write_text(json.dumps(found, indent=1) + "\n")
        (asked.out / "models.md").write_text(markdown(found))
    print(markdown(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda names: names.split(","), help="names, separated by commas")
    parser.add_argument("--threads", type=lambda counts: [int(n) for n in counts.split(",")], default=[1, 2])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each engine and thread count")
    parser.add_argument("--torch", action="store_true", help="measure torch, too (models of the zoo)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def measured(subject: Subject, asked: argparse.Namespace) -> list[dict]:
    """One row for each thread count; a model that does not compile gives one row with the reason."""
    row = {"model": subject.name, "source": subject.source, "variant": subject.variant}
    path = subject.path()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "model.sparsec"
        request = CompileRequest(str(path), str(artifact), target="native", passes=subject.passes)
        start = time.perf_counter()
        try:
            report = work.do("compile", request.to_json())
        except SparsecError as error:
            return [row | {"failed": str(error)}]
        row |= {
            "compile_seconds": time.perf_counter() - start,
            "bytes": report["size"],
            "onnx_bytes": path.stat().st_size,
            "error": max(e["max_rel_to_scale"] for e in report["receipt"]["max_error"].values()),
        }
        return [row | {"threads": n} | latency(subject, path, artifact, n, asked) for n in asked.threads]


def latency(subject: Subject, path: Path, artifact: Path, threads: int, asked: argparse.Namespace) -> dict:
    """p50 and p90 of every engine on the same inputs."""
    with sparsec.load(artifact, threads=threads) as model, measure.pinned(threads):
        feeds = inputs(model.inputs)
        engines: dict[str, Callable] = {
            "sparsec": lambda: model(feeds),
            "onnxruntime": reference(path, feeds, threads),
        }
        if asked.torch and subject.source == "zoo":
            engines["torch"] = torch_engine(subject.name, feeds, threads)
        found = measure.interleaved(engines, asked.seconds * len(engines))
    return {name: result.to_json() for name, result in found.items()}


def torch_engine(name: str, feeds: dict, threads: int) -> Callable:
    import torch

    import zoo

    torch.set_num_threads(threads)
    network = zoo.build(name)
    inputs = [torch.from_numpy(feeds[key]) for key in network.inputs]

    def run():
        with torch.inference_mode():
            return network.module(*inputs)

    return run


def machine() -> dict:
    """What the numbers depend on."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "sparsec": sparsec.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def markdown(found: dict) -> str:
    """The table that is made from the JSON."""
    here = found["machine"]
    lines = [
        "# Models",
        "",
        f"{here['cpu']}, {here['cores']} cores, {found['date']}, sparsec {here['sparsec']}, ONNX Runtime "
        f"{here['onnxruntime']}. Milliseconds, batch 1, engines by turns, pinned. Made by `make bench`.",
        "",
        "On two threads the engines disturb each other: the idle threads of ONNX Runtime go on spinning on",
        "the core that sparsec then needs, so those rows are no measure of how sparsec scales.",
        "",
        "| model | variant | threads | sparsec p50 | p90 | ONNX Runtime p50 | p90 | speed | error | file |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        head = f"| {row['model']} | {row['variant']} |"
        if "failed" in row:
            lines.append(f"{head} failed: {row['failed'].replace('|', '/')} | | | | | | | |")
            continue
        ours, other = row["sparsec"], row["onnxruntime"]
        times = [ours["p50_ms"], ours["p90_ms"], other["p50_ms"], other["p90_ms"]]
        cells = [str(row["threads"]), *(f"{t:.3g}" for t in times), f"{times[2] / times[0]:.2f}x"]
        lines.append(f"{head} {' | '.join(cells)} | {row['error']:.0e} | {text.size(row['bytes'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
