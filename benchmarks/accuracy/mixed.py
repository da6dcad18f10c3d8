"""A precision for each layer under budgets of error, beside one precision throughout: error and time.

    python -m benchmarks.accuracy.mixed minilm [--errors 0.005 0.02 ...] [--texts 64]
    python -m benchmarks.accuracy.mixed resnet8 MODEL.onnx [--errors ...]

`minilm`: all-MiniLM-L6-v2 on the texts of `minilm`, one of 64 tokens at a time; `resnet8`: the network of
MLPerf Tiny on the crops of `resnet8`.  Errors and times are those of the compiled model on this machine, on
one thread; a quarter of the data is held out, and judges.  Results are added to
``benchmarks/results/accuracy.json``.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

from sparsec.compiler.allocation.budget import Budget
from sparsec.compiler.ingest import ingest
from sparsec.compiler.mixed.allocate import search, share
from sparsec.compiler.mixed.survey import Candidate, Survey
from sparsec.compiler.request import CompileRequest

from . import minilm, resnet8
from .store import add

TOKENS = 64
IMAGES = 128


def campaign(network: str, model, data: Path, errors: list[float]) -> None:
    """One survey, a search for each budget, a row for each result and for each precision throughout."""
    request = CompileRequest("", "", "native", precision="bf16,int8", calib=str(data))
    known = Survey(model, request, lambda line: print(f"  {line}", flush=True))
    for precision, candidate in known.uniform.items():
        record(network, f"{precision} throughout", known, candidate)
    for error in errors:
        record(network, f"at most {error:g}", known, search(known, Budget(error=error)))


def record(network: str, budget: str, known: Survey, best: Candidate) -> None:
    counts = Counter(str(form) for form in best.chosen.values())
    row = {
        "network": network,
        "budget": budget,
        "error": round(best.judgement.error, 5),
        "cosine": round(best.judgement.cosine, 5),
        "ms": round(1e3 * best.seconds, 3),
        "share": round(share(known, best), 3),
        "layers": dict(counts) | {"fp32": len(known.forms) - sum(counts.values())},
    }
    add("mixed", row)
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("minilm", "resnet8"))
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--errors", type=float, nargs="+", default=[0.0, 0.005, 0.01, 0.02, 0.05, 0.2])
    parser.add_argument("--texts", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, path = Path(folder) / "data.npz", arguments.model
        if arguments.network == "minilm":
            path = Path(folder) / "dense.onnx"
            minilm.export(path)
            np.savez(data, **minilm.tokens(minilm.texts()[: arguments.texts], TOKENS))
            model = ingest(path, {}, {"batch": 1, "length": TOKENS})
        else:
            photographs = load_sample_images().images
            middle = photographs[0].shape[1] // 2
            np.savez(data, input_1=resnet8.crops([p[:, :middle] for p in photographs])[:IMAGES])
            model = ingest(path)
        campaign(arguments.network, model, data, arguments.errors)


if __name__ == "__main__":
    main()
