"""``sparsec bench``: latency beside ONNX Runtime in the same run, cold start and memory."""

import json
from pathlib import Path

import click

from . import measure, options, text
from .failure import Failure

SECONDS = 3.0  # for each engine

OURS = """
import sys
import numpy as np
from sparsec.runtime import load
device = int(sys.argv[4]) if sys.argv[4] else None
model = load(sys.argv[1], threads=int(sys.argv[2]), variant=sys.argv[3] or None, device=device)
model({t.name: np.ones(t.shape, t.dtype) for t in model.inputs})
"""
ORT = """
import json, sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {name: np.ones(shape, dtype) for name, dtype, shape in json.loads(sys.argv[3])})
"""


@click.command()
@click.argument("artifact", type=options.PATH)
@click.option("--against", type=options.PATH, metavar="MODEL.onnx", help="Measure ONNX Runtime on it, too.")
@options.threads
@options.device
@options.variant
@options.as_json
def bench(
    artifact: Path,
    against: Path | None,
    threads: int,
    device: int | None,
    variant: str | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACT: latency, cold start, memory."""
    from sparsec.runtime import load

    if against is not None:
        options.readable(against, "model")
    with load(artifact, threads=threads, device=device, variant=variant) as model:
        feeds = inputs(model.inputs)
        engines = {"sparsec": lambda: model(feeds)}
        if against is not None:
            engines["onnxruntime"] = reference(against, feeds | inputs(model.states), threads)
        click.echo(f"  {SECONDS:g} s for each engine, by turns", err=True)
        with measure.pinned(threads):
            latency = measure.interleaved(engines, SECONDS * len(engines))
        ports = json.dumps([[t.name, t.dtype, t.shape] for t in (*model.inputs, *model.states)])
        level = model.level
    found = {
        "artifact": str(artifact),
        "level": level,
        "threads": threads,
        "engines": {name: result.to_json() for name, result in latency.items()},
    }
    click.echo("  cold starts in fresh processes", err=True)
    found["engines"]["sparsec"] |= cold(
        OURS, [str(artifact), str(threads), variant or "", "" if device is None else str(device)], threads
    )
    if against is not None:
        found["engines"]["onnxruntime"] |= cold(ORT, [str(against), str(threads), ports], threads)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n".join(lines(found)))


def inputs(infos) -> dict:
    """Seeded normal floats; elsewhere ones: an index 1 exists, and a mask of ones hides nothing."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = {}
    for info in infos:
        dtype = np.dtype(info.dtype)
        value = rng.standard_normal(info.shape) if dtype.kind == "f" else np.ones(info.shape)
        found[info.name] = value.astype(dtype)
    return found


def reference(path: Path, feeds: dict, threads: int):
    """A function that runs the model once in ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Failure("--against needs the package onnxruntime: pip install onnxruntime") from error
    choices = onnxruntime.SessionOptions()
    choices.intra_op_num_threads = threads
    choices.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), choices, providers=["CPUExecutionProvider"])
        names = {port.name for port in session.get_inputs()}
        wanted = {name: value for name, value in feeds.items() if name in names}
        session.run(None, wanted)
    except Exception as error:
        raise Failure(f"ONNX Runtime cannot run {str(path)!r}: {str(error).splitlines()[0]}") from error
    return lambda: session.run(None, wanted)


def cold(setup: str, arguments: list[str], threads: int) -> dict:
    """Best of three fresh processes: the first one finds cold file caches."""
    with measure.pinned(threads):
        try:
            runs = [measure.fresh_process(setup, arguments) for _ in range(3)]
        except RuntimeError as error:
            raise Failure(str(error)) from error
    return min(runs, key=lambda run: run["cold_start_ms"])


def lines(found: dict) -> list[str]:
    rows = []
    for name, engine in found["engines"].items():
        times = [text.duration(engine[key] / 1e3) for key in ("p50_ms", "p90_ms", "p99_ms", "cold_start_ms")]
        rows.append([name, *times, text.size(engine["peak_memory_bytes"]), str(engine["calls"])])
    shown = text.table(["engine", "p50", "p90", "p99", "cold start", "memory", "calls"], rows, "<>>>>>>")
    ours, other = found["engines"]["sparsec"], found["engines"].get("onnxruntime")
    about = f"{text.count(found['threads'], 'thread')}, level {found['level']}"
    if other:
        ratio = other["p50_ms"] / ours["p50_ms"]
        about += f"; {ratio:.2f}x the speed of ONNX Runtime (p50)"
    return [*shown, "", about]
