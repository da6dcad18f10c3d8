"""Cold starts: import, load and first run in a fresh process, the best of three (file caches are warm)."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from . import plots, report, results
from .compiled import CompileFailed, compiled
from .rows import settings_of
from .subjects import cache, subjects
from .turns import Child, EngineError, Entrant

FRESH = 3


def measure(asked) -> None:
    run, settings = results.this_run(), settings_of(asked)
    known = subjects()
    for name in known if "all" in asked.models else asked.models:
        file, feeds = known[name].files("dense", 1)
        row = {"model": name, "threads": 1, "engines": {}}
        entrants = [Entrant(e, e, file) for e in ("onnxruntime", "openvino_fp32") if e in settings.engines]
        if settings.deepsparse and "deepsparse" in settings.engines:
            entrants.append(Entrant("deepsparse", "deepsparse", file, settings.deepsparse))
        try:
            entrants.insert(0, Entrant("sparsec", "sparsec", compiled(file, settings.target)[0]))
        except CompileFailed as error:
            row["engines"]["sparsec"] = {"failed": str(error)}
        if asked.iree:
            try:
                entrants.append(Entrant("iree", "iree", iree_module(file, asked.iree), asked.iree))
            except subprocess.CalledProcessError as error:
                row["engines"]["iree"] = {"failed": (error.stderr.strip().splitlines() or ["?"])[-1][:300]}
        for entrant in entrants:
            row["engines"][entrant.label] = fresh(entrant, feeds)
        results.add("starts", row, run)
        times = {key: e.get("cold_seconds", float("nan")) for key, e in row["engines"].items()}
        print(name, "  ".join(f"{key} {s:.3f} s" for key, s in times.items()), flush=True)
    found = results.load()
    report.write(found)
    plots.write(found)


def fresh(entrant: Entrant, feeds: Path) -> dict:
    """Seconds of the best start and the resident peak of that process."""
    found = []
    with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as folder:
        for _ in range(FRESH):
            try:
                child = Child(entrant, 1, feeds, Path(folder))
            except EngineError as error:
                return {"failed": str(error)[:300]}
            child.close()
            found.append(child.facts)
    return min(found, key=lambda facts: facts["cold_seconds"])


def iree_module(file: Path, python: str) -> Path:
    """What IREE's own tools make of ``file`` for this CPU, from the cache if it is there."""
    folder = cache() / "iree"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.vmfb"
    if not made.exists():
        mlir = made.with_suffix(".mlir")
        tools = Path(python).parent
        flags = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
        flags += ["--iree-llvmcpu-target-cpu=host", "-o", str(made)]
        for command in (
            [
                python,
                "-m",
                "iree.compiler.tools.import_onnx",
                str(file),
                "-o",
                str(mlir),
                "--opset-version",
                "17",
            ],
            [str(tools / "iree-compile"), str(mlir), *flags],
        ):
            print("  " + Path(command[0]).name, file=sys.stderr)
            subprocess.run(command, check=True, capture_output=True, text=True)
        mlir.unlink()  # the weights as text
    return made
