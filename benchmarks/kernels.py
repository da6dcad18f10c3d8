"""Single operators beside the peers, and what the machine can do, in the same run."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from . import plots, report, results
from .cases import Case, cases
from .compiled import CompileFailed, compiled
from .rows import Settings, compared, peers, settings_of
from .turns import Entrant, compete, cores


def measure(asked) -> None:
    run, settings = results.this_run(), settings_of(asked)
    found = [case for case in cases() if re.search(asked.only, case.name)]
    if asked.prepare:
        for case in found:
            try:
                print(
                    case.name,
                    compiled(case.files()[0], settings.target)[1]["compile_seconds"],
                    file=sys.stderr,
                )
            except CompileFailed as error:
                print(f"{case.name}: {error}", file=sys.stderr)
        return
    results.add("peaks", {"cpu": run["machine"]} | peaks(), run)
    for case in found:
        row = kernel_row(case, settings)
        results.add("kernels", row, run)
        times = [f"{key} {e.get('p50_ms', float('nan')):.4f}" for key, e in row["engines"].items()]
        print(f"{case.name}: {'  '.join(times)}", flush=True)
    found = results.load()
    report.write(found)
    plots.write(found)


def kernel_row(case: Case, settings: Settings) -> dict:
    """One thread; peers run the same file, and the rival's where they have no such operator."""
    file, feeds = case.files()
    row = {"name": case.name, "family": case.family, "variant": case.variant, "target": settings.target}
    row |= {"flops": case.flops, "moved": case.moved, "engines": {}}
    entrants = []
    if "sparsec" in settings.engines:
        try:
            entrants.append(Entrant("sparsec", "sparsec", compiled(file, settings.target)[0]))
        except CompileFailed as error:
            row["engines"]["sparsec"] = {"failed": str(error)}
    entrants += peers(file, settings)
    rivals = []
    if case.rival:
        row["rival"] = case.rival.name.split()[0]
        rivals = peers(case.rival.files()[0], settings, f"_{row['rival']}")
    facts, outputs = compete(entrants + rivals, feeds, 1, settings.seconds)
    if case.family == "int8":  # of engines that call themselves float32
        facts = {label: found | {"precision": "int8"} for label, found in facts.items()}
    row["engines"] |= compared(facts, outputs, [rival.label for rival in rivals])
    return row


def peaks() -> dict:
    """Multiply-adds, reads and copies of one core, per second: see peaks.c."""
    source = Path(__file__).with_name("peaks.c")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peaks"
        zig = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native", "-fno-sanitize=all"]
        subprocess.run([*zig, str(source), "-o", str(program)], check=True)
        pinned = ["taskset", "-c", str(cores(1)[0]), str(program)]
        return json.loads(subprocess.run(pinned, check=True, capture_output=True, text=True).stdout)
