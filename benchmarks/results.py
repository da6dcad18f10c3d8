"""The JSON that rows accumulate in: a row measured again takes the place of the old one.

    {"runs": {"1": {"date", "machine", "versions", "command"}}, "models": [row, ...], "kernels": [...], ...}

Each row names the run that measured it; runs without a row are forgotten.
"""

import fcntl
import json
import os
import platform
import re
import shlex
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .subjects import publish

FOLDER = Path(__file__).resolve().parent / "results"
#: What makes two rows of a table the same measurement; a precision is named where it is not fp32.
KEYS = {
    "models": ("model", "variant", "batch", "threads", "target", "precision"),
    "starts": ("model", "threads"),
    "kernels": ("name", "target"),
    "peaks": ("cpu",),
}


def load(folder: Path = FOLDER) -> dict:
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else {"runs": {}} | {table: [] for table in KEYS}


def add(table: str, row: dict, run: dict, folder: Path = FOLDER) -> None:
    """Put ``row`` into the file at once, so that an interrupted run keeps what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = merged(load(folder), table, row, run)
        text = json.dumps(found, indent=1) + "\n"
        publish(folder / "results.json", lambda draft: draft.write_text(text))


def merged(found: dict, table: str, row: dict, run: dict) -> dict:
    """``found`` with ``row`` in the place of its predecessor, or at the end of its table."""
    runs, rows = dict(found["runs"]), list(found[table])
    name = next((key for key, value in runs.items() if value == run), None)
    if name is None:
        name = str(max(map(int, runs), default=0) + 1)
        runs[name] = run
    row = row | {"run": name}
    places = [i for i, old in enumerate(rows) if all(old.get(key) == row.get(key) for key in KEYS[table])]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    found = found | {table: rows}
    used = {row["run"] for key in KEYS for row in found[key]}
    return found | {"runs": {key: value for key, value in runs.items() if key in used}}


def this_run() -> dict:
    """Date, machine, versions and command, for every row of this process."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    versions = {}
    for package in ("sparsec", "apache-tvm", "onnxruntime", "openvino", "torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "machine": f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
        # Where an interpreter lies is this machine's business.
        "command": "python -m benchmarks " + shlex.join(Path(a).name for a in sys.argv[1:]),
    }
