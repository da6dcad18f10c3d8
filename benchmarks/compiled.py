"""Our artifact of an ONNX file, and what making it cost: the command line in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import time
from functools import cache as once
from pathlib import Path

from .subjects import ROOT, cache

#: Seconds, far above what any model may take; a hang must end some day.
PATIENCE = 1800


class CompileFailed(Exception):
    """``sparsec compile`` said no; the text is its reason."""


def compiled(file: Path, target: str, precision: str = "fp32") -> tuple[Path, dict]:
    """The artifact of ``file``, from the cache if these very sources made it, and its costs.

    The costs: seconds of wall clock and of CPU, the resident peak of the largest process in bytes, the sizes
    of the artifact and of the ONNX file, the largest error beside ONNX Runtime, relative to the scale of the
    output.
    """
    # int8 is what the file says.
    options = ["--target", target, *(["--precision", precision] if precision == "bf16" else [])]
    made_by = f"{sources()}-{'-'.join(options[1:])}"
    key = hashlib.sha256(file.read_bytes() + made_by.encode()).hexdigest()[:16]
    folder = cache() / "artifacts" / key
    artifact, costs = folder / "model.sparsec", folder / "costs.json"
    if not costs.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = compile_once(file, artifact, options)
        costs.write_text(json.dumps(found))
    found = json.loads(costs.read_text())
    if "failed" in found:
        raise CompileFailed(found["failed"])
    return artifact, found


def compile_once(file: Path, artifact: Path, options: list[str]) -> dict:
    command = [sys.executable, "-m", "sparsec", "compile", str(file), "-o", str(artifact)]
    command += [*options, "--json"]
    log = artifact.with_suffix(".log")
    start = time.perf_counter()
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd="/")
        answer = process.stdout.read()
        # The kernel keeps the largest resident peak over a process and the children that it waited for.
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        lines = log.read_text().strip().splitlines()
        return {"failed": lines[-1][:300] if lines else f"exit status {process.returncode}"}
    report = json.loads(answer)
    errors = report["receipt"]["max_error"].values()
    return {
        "compile_seconds": round(seconds, 2),
        "compile_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "compile_peak_bytes": usage.ru_maxrss * 1024,
        "bytes": artifact.stat().st_size,
        "onnx_bytes": file.stat().st_size,
        "error": max((e["max_rel_to_scale"] for e in errors), default=0.0),
    }


@once
def sources() -> str:
    """A hash of everything that decides what a compilation writes."""
    digest = hashlib.sha256()
    for top in ("compiler", "passes", "schedules", "runtime"):
        for file in sorted((ROOT / top).rglob("*.*")):
            if file.suffix in (".py", ".c", ".h"):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
