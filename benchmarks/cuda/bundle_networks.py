"""The whole networks of a bundle: artifacts, and what they must compute.  Needs torch and all of sparsec."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec import passes
from sparsec.compiler.check import Oracle
from sparsec.compiler.ingest import ingest
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest
from sparsec.compiler.sample import allowed

TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
if str(TESTS) not in sys.path:  # at the end, where it shadows nothing
    sys.path.append(str(TESTS))

from zoo.export import to_onnx  # noqa: E402

from .networks import ENTRIES, Entry, build  # noqa: E402


def write(folder: Path, arch: str, entries: tuple[Entry, ...] = ENTRIES, small: bool = False) -> None:
    """Compiles the networks for ``arch``; beside each lie an input, ONNX Runtime's output, and its limits."""
    (folder / "networks").mkdir(parents=True, exist_ok=True)
    for entry in entries:
        _write_one(folder / "networks" / entry.name, arch, entry, small)
    (folder / "networks.json").write_text(json.dumps([entry.to_json() for entry in entries]))


def _write_one(place: Path, arch: str, entry: Entry, small: bool) -> None:
    made, model = build(entry.network, entry.shape, small), place.with_suffix(".onnx")
    to_onnx(made, "dynamo", model)
    request = CompileRequest(
        str(model),
        str(place.with_suffix(".sparsec")),
        target=f"cuda:{arch}",
        passes=entry.passes,
        precision=entry.precision,
        verify=False,
    )
    compile_model(request)
    pruned = ingest(model)
    passes.run_pipeline(pruned, entry.passes)
    feeds = {name: x.numpy() for name, x in made.inputs.items()}
    oracle = Oracle(ir.to_proto(pruned).SerializeToString(), feeds, entry.precision)
    arrays = {f"in.{name}": x for name, x in feeds.items()}
    for name, value in oracle.expected.items():
        arrays[f"out.{name}"] = value
        arrays[f"limit.{name}"] = allowed(value, oracle.spread.get(name, 0.0), entry.precision)
    np.savez(place.with_suffix(".npz"), **arrays)
    model.unlink()
