"""Runs the whole networks of a bundle on this machine's GPU: numbers and times beside those of others.

Needs numpy and the runtime, which lies in the bundle; torch for peers, and for inputs that are on the GPU.
"""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import sparsec_runtime

#: Runs before the first that is timed, and those that are.
_WARM, _RUNS = 5, 50


def run(folder: Path, check_only: bool, peers=None) -> list[dict]:
    """A row for each network: ``error`` of its worst output, as a part of what is allowed, and ``seconds``.

    ``peers(entry)`` gives the seconds of others by name.
    """
    rows = []
    for entry in json.loads((folder / "networks.json").read_text()):
        rows.append(entry | one(folder, entry["name"], check_only, on_gpu=peers is not None))
        if peers and not check_only:
            rows[-1]["peers"] = peers(entry)
        print(_line(rows[-1]), flush=True)
    return rows


def one(folder: Path, name: str, check_only: bool, on_gpu: bool) -> dict:
    """``on_gpu``: inputs and outputs are tensors of torch in the GPU's memory."""
    data = np.load(folder / "networks" / f"{name}.npz")
    with sparsec_runtime.load(folder / "networks" / f"{name}.sparsec") as model:
        inputs = {t.name: data[f"in.{t.name}"] for t in model.inputs}
        results = {t.name: np.empty(t.shape, t.dtype) for t in model.outputs}
        if on_gpu:
            import torch

            inputs, results = (
                {n: torch.from_numpy(a).cuda() for n, a in some.items()} for some in (inputs, results)
            )
        model(inputs, out=results)
        error = max(
            _error(results[t.name], data[f"out.{t.name}"], data[f"limit.{t.name}"]) for t in model.outputs
        )
        found = {"error": error, "right": error <= 1, "peers": {}}
        if not check_only:
            found["seconds"] = timed(lambda: model(inputs, out=results))
    return found


def _error(got, want: np.ndarray, limit: np.ndarray) -> float:
    """The largest difference as a part of what it may be; NaN and wrong integers are infinitely wrong."""
    got = got if isinstance(got, np.ndarray) else got.cpu().numpy()
    difference = np.abs(got.astype(np.float64) - want).max()
    if np.isnan(difference):
        return float("inf")
    return float(difference / limit) if limit else 0.0 if difference == 0 else float("inf")


def timed(call) -> float:
    """The median of single calls, each of which waits for its result."""
    for _ in range(_WARM):
        call()
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _line(row: dict) -> str:
    took = f"{row['seconds'] * 1e6:9.1f} us" if "seconds" in row else ""
    others = " ".join(f"{name} {s * 1e6:.1f}" for name, s in row["peers"].items())
    return f"{'right' if row['right'] else 'WRONG'} {row['error']:.1e} {took}  {row['name']}  {others}"
