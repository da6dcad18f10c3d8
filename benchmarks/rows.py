"""One row: every engine on one file by turns, and whether their numbers agree."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .compiled import CompileFailed, compiled
from .goals import ours
from .quantised import quantised
from .subjects import ROOT, Subject
from .turns import Entrant, compete

REFERENCE = "onnxruntime"
#: Largest difference to the reference, relative to the largest magnitude of an output.  Deep networks with
#: random weights amplify rounding, that of bf16, with 8 bits of mantissa, to 0.1 in ResNet-50.
TOLERANCE = {"f32": 1e-3, "bf16": 0.2, "f16": 0.02, "int8": 0.1}
#: Of an int8 row: largest distance to the network in float32, in those of the reference.  What engines make
#: of one step of rounding is amplified as well, so they differ from each other as they do from the floats.
WORSE = 1.5
#: Engines of a row, by its precision; in int8 all get the file that ``quantised`` makes.
ENGINES = {
    "fp32": ("sparsec", "onnxruntime", "openvino_fp32", "openvino", "torch", "deepsparse"),
    "bf16": ("sparsec_bf16", "onnxruntime", "openvino"),
    "int8": ("sparsec_int8", "onnxruntime", "openvino"),
}


@dataclass(frozen=True)
class Settings:
    """What holds for all rows of a run."""

    engines: tuple[str, ...] = ENGINES["fp32"]
    seconds: float = 2.0
    target: str = "native"
    precision: str = "fp32"
    deepsparse: str | None = None  # its interpreter


def settings_of(asked) -> Settings:
    precision = getattr(asked, "precision", "fp32")
    engines = asked.engines or ENGINES[precision]
    return Settings(engines, asked.seconds, asked.target, precision, deepsparse_python(asked.deepsparse))


def deepsparse_python(given: str | None) -> str | None:
    """``given``, else ``$SPARSEC_DEEPSPARSE``, else what `make deepsparse` made, where it exists."""
    made = ROOT / ".venv-deepsparse" / "bin" / "python"
    return given or os.environ.get("SPARSEC_DEEPSPARSE") or (str(made) if made.exists() else None)


def model_row(subject: Subject, variant: str, batch: int, threads: int, settings: Settings) -> dict:
    """The row of a whole network; one that does not compile keeps its peers and the reason."""
    file, feeds = files(subject, variant, batch, settings.precision)
    row = {"model": subject.name, "source": subject.source, "variant": variant, "batch": batch}
    row |= {"threads": threads, "target": settings.target, "engines": {}}
    row |= {"precision": settings.precision} if settings.precision != "fp32" else {}
    entrants, name = [], ours(row)
    if name in settings.engines:
        try:
            artifact, costs = compiled(file, settings.target, settings.precision)
            entrants.append(Entrant(name, "sparsec", artifact))
            row |= costs
        except CompileFailed as error:
            row["engines"][name] = {"failed": str(error)}
    entrants += peers(file, settings)
    # torch runs the dense network: zeros are no method of its own.
    if "torch" in settings.engines and subject.path is None and variant == "dense":
        extra = {"network": subject.name, "shape": subject.shape(batch), "zoo": str(ROOT / "tests")}
        entrants.append(Entrant("torch", "torch", file, extra=extra))
    if "deepsparse" in settings.engines and settings.deepsparse:
        entrants.append(Entrant("deepsparse", "deepsparse", file, settings.deepsparse))
    facts, outputs = compete(entrants, feeds, threads, settings.seconds)
    floats = float_outputs(subject.files(variant, batch)[0], feeds) if settings.precision == "int8" else None
    row["engines"] |= compared(facts, outputs, floats=floats)
    return row


def float_outputs(file: Path, feeds: Path) -> list[np.ndarray]:
    """What the network in float32 computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with np.load(feeds) as stored:
        return session.run(None, {name: stored[name] for name in stored.files})


def files(subject: Subject, variant: str, batch: int, precision: str) -> tuple[Path, Path]:
    """The model file of a row, and an npz of inputs."""
    file, feeds = subject.files(variant, batch)
    return (quantised(file, feeds) if precision == "int8" else file), feeds


def peers(file: Path, settings: Settings, suffix: str = "") -> list[Entrant]:
    """ONNX Runtime and OpenVINO on ``file``, those that are asked for."""
    names = ("onnxruntime", "openvino_fp32", "openvino")
    return [Entrant(name + suffix, name, file) for name in names if name in settings.engines]


def compared(facts: dict, outputs: dict, others=(), floats=None) -> dict:
    """``facts`` with each engine's largest difference to the reference; ``wrong`` where that is too much.

    ``others``: labels of engines that run another operator and cannot agree.  With ``floats``, the outputs
    that an int8 network approximates, differences are to these, and too much is measured by the reference's.
    """
    if REFERENCE not in outputs:
        return facts
    want, said = (outputs[REFERENCE], REFERENCE) if floats is None else (floats, "float32")
    tolerance = TOLERANCE
    if floats is not None:
        most = max(TOLERANCE["int8"], WORSE * difference(outputs[REFERENCE], floats))
        tolerance = dict.fromkeys(TOLERANCE, most)
    for label, found in facts.items():
        if label in outputs and label not in others and (label != REFERENCE or floats is not None):
            error = difference(outputs[label], want)
            found["error"] = float(f"{error:.2g}")
            if not error <= tolerance[found["precision"]]:
                found["wrong"] = True
                print(f"  {label}: differs from {said} by {error:.2g} of the scale", file=sys.stderr)
    return facts


def difference(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The largest |got - want| over the largest |want|, the worst output; inf for other shapes or NaN."""
    if len(got) != len(want):
        return float("inf")
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape:
            return float("inf")
        scale = float(np.abs(b).max(initial=0)) or 1.0
        distance = float(np.abs(a.astype(np.float64) - b).max(initial=0)) / scale
        worst = max(worst, distance if np.isfinite(distance) else float("inf"))
    return worst
