"""`benchmarks/results/accuracy.json`: tables of results; one measured again takes the old one's place."""

import json
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "results" / "accuracy.json"
#: What makes two results of a table the same measurement.
KEYS = {
    "minilm": ("layers", "pattern", "method", "damping"),
    "trained": ("pattern",),
    "frontier": ("patterns", "latency"),
    "resnet8": ("pattern", "sweeps", "images"),
    "digits": ("network", "pattern", "method"),
    "int8": ("network", "pattern", "way"),
    "activations": ("network", "way"),
    "mixed": ("network", "budget"),
    "weights": ("network", "pattern", "bits", "way"),
}


def load(file: Path = FILE) -> dict[str, list[dict]]:
    return json.loads(file.read_text()) if file.exists() else {}


def add(table: str, result: dict, file: Path = FILE) -> None:
    """Write `result` at once, so that an interrupted campaign keeps what it has."""
    found = load(file)
    key = [result[name] for name in KEYS[table]]
    kept = [r for r in found.get(table, []) if [r[name] for name in KEYS[table]] != key]
    found[table] = sorted([*kept, result], key=lambda r: [str(r[name]) for name in KEYS[table]])
    file.write_text(json.dumps(found, indent=1) + "\n")
