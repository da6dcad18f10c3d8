"""What a sparse model may lose and must gain, and how that is judged on data that pruning has not seen."""

import importlib.util
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec.compiler import reference
from sparsec.compiler.calibration import Replay, read_batches
from sparsec.compiler.errors import CompileError

LABELS = "labels"
HELD_OUT = 0.25
"""The share of the calibration samples, the last ones, that judge and are not pruned on."""

Outputs = Sequence[Mapping[str, np.ndarray]]
Metric = Callable[[Mapping[str, np.ndarray]], float]


@dataclass(frozen=True)
class Budget:
    """``error``: largest change of an output relative to its scale.  ``drop``: of the metric.  ``latency``
    and ``size``: share of the dense model's.  None where nothing is asked."""

    error: float | None = None
    drop: float | None = None
    latency: float | None = None
    size: float | None = None

    @property
    def judged(self) -> bool:
        """Whether a pruned model must be run to know if it keeps the budget."""
        return self.error is not None or self.drop is not None


@dataclass(frozen=True)
class Judgement:
    """``error``, ``cosine`` (mean over samples, of the worst output) and, with a metric, its ``drop``."""

    error: float
    cosine: float
    drop: float | None

    def keeps(self, budget: Budget) -> bool:
        return (budget.error is None or self.error <= budget.error) and (
            budget.drop is None or (self.drop is not None and self.drop <= budget.drop)
        )

    def __str__(self) -> str:
        text = f"outputs change by {self.error:.2e} of their scale, mean cosine {self.cosine:.4f}"
        return text if self.drop is None else f"{text}, the metric drops by {self.drop:.4f}"


def split(calib: str, model: ir.Model) -> tuple[list, list]:
    """The batches of the npz at `calib` to work on, and those, the last ones, to judge by.

    Raises CompileError where there is one batch only.
    """
    batches = read_batches(calib, model)
    if len(batches) < 2:
        samples = len(next(iter(batches[0].values())))
        batches = read_batches(calib, model, max(1, samples // 4))
    if len(batches) < 2:
        raise CompileError(
            f"calibration data '{calib}' has one batch; a budget needs at least two, "
            "one to work on and one to judge by"
        )
    held = max(1, round(HELD_OUT * len(batches)))
    return batches[:-held], batches[-held:]


def outputs(model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """What `model` makes of each batch."""
    names = [value.name for value in model.graph.outputs]
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        return list(Replay(model, feeds, Path(folder))(names))


def unpadded(output: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """`output` with zeros where `mask` says by its zeros that a row is padding; without a mask, or with one
    of another shape than the rows have, as it is."""
    if mask is None or output.shape[: mask.ndim] != mask.shape or output.ndim <= mask.ndim:
        return output
    stays = (mask != 0).reshape(*mask.shape, *(1,) * (output.ndim - mask.ndim))
    return np.where(stays, output, np.zeros((), output.dtype))


def metric_for(text: str | None, calib: str, unseen: Sequence[Mapping[str, np.ndarray]]) -> Metric | None:
    """The metric that was asked for: a hook, or accuracy where the data has labels."""
    rows = sum(len(next(iter(feed.values()))) for feed in unseen)
    with np.load(calib, allow_pickle=False) as data:
        held = {name: data[name][-rows:] for name in data.files}
    if text:
        return hook(text, held)
    return accuracy(held[LABELS]) if LABELS in held else None


def judge(
    dense: Outputs, pruned: Outputs, metric: Metric | None, mask: np.ndarray | None = None
) -> Judgement:
    """Compares the outputs of two models on the same batches; see `unpadded` for `mask`, of all samples."""
    old = {name: np.concatenate([batch[name] for batch in dense]) for name in dense[0]}
    new = {name: np.concatenate([batch[name] for batch in pruned]) for name in dense[0]}
    errors, cosines = [0.0], [1.0]
    for name, wanted in old.items():
        if wanted.dtype.kind == "f":
            ends = unpadded(new[name], mask), unpadded(wanted, mask)
            errors.append(reference.compare(*ends).to_json()["max_rel_to_scale"])
            cosines.append(_mean_cosine(*ends))
    drop = metric(old) - metric(new) if metric else None
    return Judgement(max(errors), min(cosines), drop)


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (value.reshape(len(value), -1).astype(np.float64) for value in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), 1.0)))


def accuracy(labels: np.ndarray) -> Metric:
    """The share of samples whose first output has its largest value, along the last axis, at the label."""

    def metric(outputs: Mapping[str, np.ndarray]) -> float:
        scores = next(iter(outputs.values()))
        if scores.ndim < 2 or scores.shape[:-1] != labels.shape:
            raise CompileError(
                f"labels of shape {list(labels.shape)} do not fit the first output {list(scores.shape)}: "
                "one label for each row of scores is required; give another metric with --metric FILE.py:NAME"
            )
        return float((scores.argmax(axis=-1) == labels).mean())

    return metric


def hook(text: str, samples: Mapping[str, np.ndarray]) -> Metric:
    """``FILE.py:NAME``: a function that takes (outputs, samples), dicts of arrays, and gives a number.

    Larger is better.  ``samples`` are all held-out arrays of the npz.  Raises CompileError where there is no
    such function.
    """
    match = re.fullmatch(r"(.+\.py):(\w+)", text)
    if match is None or not Path(match[1]).is_file():
        raise CompileError(f"--metric {text}: required FILE.py:NAME, a function in a file that exists")
    module_spec = importlib.util.spec_from_file_location("sparsec_metric", match[1])
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        function = getattr(module, match[2])
    except Exception as error:
        raise CompileError(f"--metric {text}: {type(error).__name__}: {error}") from error

    def metric(outputs: Mapping[str, np.ndarray]) -> float:
        try:
            return float(function(outputs, samples))
        except Exception as error:
            raise CompileError(f"--metric {text}: {type(error).__name__}: {error}") from error

    return metric
