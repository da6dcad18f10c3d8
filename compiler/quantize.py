"""Quantising with calibration data: ONNX Runtime runs the model, part by part, as `passes.quantize` asks.

First every layer that can be is quantised. Then the layers are taken back, one input after the other, to see
what of the error at the model's outputs is theirs: what costs much of it and little work stays float32, and
under a budget as many more as it takes. Layers behind those were fitted to take back errors that are gone
now, so the model is quantised once more without them.
"""

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec.compiler.allocation.budget import Judgement, judge, metric_for, outputs, split
from sparsec.compiler.calibration import Replay, read_batches
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import form
from sparsec.compiler.prune import mask_input
from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_choice import MIN_SIZE, Choice
from sparsec.passes.nm_layers import find_layers
from sparsec.passes.prune import parse_pattern
from sparsec.passes.prune.grouping import group
from sparsec.passes.prune.insert import choose
from sparsec.passes.prune.walk import Settings as PruneSettings
from sparsec.passes.quantize import RANGES, Settings
from sparsec.passes.quantize.insert import STAYS, by_input, findings, quantise, revert
from sparsec.passes.quantize.walk import Outcome

BEST = "best"
"""All methods of `RANGES`, for each input the one with the least error of the output."""
PROBES = 2
"""Batches on which the error of the outputs is measured with one input's layers taken back."""
WORTH = 0.02
"""The share of that error that must go for layers to stay float32."""


@dataclass(frozen=True)
class QuantizeRequest:
    """`ranges`: a key of `RANGES` or `BEST`; `rounding`: of `ROUNDINGS`, `threshold`, `soft`: of its `gpfq`;
    `pattern`: "" or one to prune to with `method`. `mask`, `layers`, `skip`, `min_size`, `damping` and
    `group` are those of `PruneRequest`, size and `group` for the pattern alone. `floats`: share of the
    multiply-adds that may stay float32 where that takes back most. `max_error`, `max_drop` and `metric`: a
    budget, as in `allocation.budget`, on data that is held out."""

    calib: str
    ranges: str = BEST
    rounding: str = "descent"
    threshold: float = 0.0
    soft: bool = False
    migrate: bool = True
    pattern: str = ""
    method: str = "search"
    group: bool = True
    damping: float | None = None
    mask: str = ""
    layers: str = "*"
    skip: str = ""
    min_size: int = MIN_SIZE
    floats: float = 0.02
    max_error: float | None = None
    max_drop: float | None = None
    metric: str | None = None

    @property
    def judged(self) -> bool:
        return self.max_error is not None or self.max_drop is not None


@dataclass(frozen=True, eq=False)
class Quantised:
    """`layers`: a report for each layer that was quantised or taken back; `held_out`: under a budget."""

    findings: list[Finding]
    layers: list[dict]
    held_out: Judgement | None


def quantize_model(model: ir.Model, request: QuantizeRequest, log: Callable[[str], None]) -> Quantised:
    """Quantise `model` in place. Raises PassError and CompileError."""
    if not request.judged:
        return quantize_on(model, read_batches(request.calib, model), request, log)
    seen, unseen = split(request.calib, model)
    metric = metric_for(request.metric, request.calib, unseen)
    if request.max_drop is not None and metric is None:
        raise CompileError(
            f"--max-drop needs --metric FILE.py:NAME or an array `labels` in '{request.calib}'; there is none"
        )
    wanted = outputs(model, unseen)
    return quantize_on(model, seen, request, log, lambda made: judge(wanted, outputs(made, unseen), metric))


def quantize_on(
    model: ir.Model,
    feeds: Sequence[Mapping[str, np.ndarray]],
    request: QuantizeRequest,
    log: Callable[[str], None],
    judged: Callable[[ir.Model], Judgement] | None = None,
) -> Quantised:
    """`quantize_model` on batches that have been read; `judged` runs a model on those that were held out."""
    form.infer(model)
    mask = mask_input(model, request.mask)
    pattern = parse_pattern(request.pattern) if request.pattern else None
    settings = _settings(request, mask)
    choice = Choice(request.layers, request.skip, request.min_size)
    moved: list[Finding] = []
    if pattern is not None and request.group:
        wanted, _ = choose(list(find_layers(model)), model.graph, pattern, choice)
        pruning = PruneSettings(request.method, damping=request.damping, mask=mask)
        with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
            moved = group(model, wanted, Replay(model, feeds, Path(folder) / "given"), pruning, log)
    given = model.clone()

    def quantised(made: ir.Model, floats: Mapping[str, str]) -> tuple[list[Outcome], dict[str, str]]:
        with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
            dense = Replay(given, feeds, Path(folder) / "dense")
            observed = Replay(made, feeds, Path(folder) / "quantized")
            return quantise(made, pattern, dense, observed, settings, choice, log, floats=floats)

    outcomes, reasons = quantised(model, {})
    if not outcomes and any(node.op_type == "DequantizeLinear" for node in model.graph):
        raise CompileError("the model is quantised already; compile it as it is, without --precision")
    if not outcomes:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        raise CompileError(f"no layer of the model can be quantised: {some or 'it has no constant weights'}")
    probes = feeds[-PROBES:]
    backs, judgement = _take_back(model, given, outcomes, probes, request, log, judged)
    reports = {outcome.report["node"]: outcome.report for outcome in outcomes}
    if _behind(model, backs) & reports.keys() - backs.keys():
        log(f"quantise once more, {len(backs)} of {len(outcomes)} layers in float32")
        trial = given.clone()
        again, _ = quantised(trial, backs)
        now = judged(trial) if judged else None
        if judged:
            better = _keeps(now, request) and now.error <= judgement.error
        else:
            wanted = outputs(given, probes)
            better = _error(outputs(trial, probes), wanted) <= _error(outputs(model, probes), wanted)
        if better:
            model.graph, judgement = trial.graph, now
            for outcome in again:
                reports[outcome.report["node"]].update(outcome.report)
    return Quantised(moved + findings(outcomes, reasons, backs), list(reports.values()), judgement)


def _settings(request: QuantizeRequest, mask: str | None) -> Settings:
    return Settings(
        tuple(RANGES) if request.ranges == BEST else (request.ranges,),
        request.rounding,
        request.migrate,
        request.method,
        damping=request.damping,
        mask=mask,
        threshold=request.threshold,
        soft=request.soft,
    )


def _behind(model: ir.Model, names: Collection[str]) -> set[str]:
    """The nodes of `model` that see an output of those called `names`, by name."""
    seen: set[ir.Value] = set()
    found = set()
    for node in model.graph:
        behind = any(value in seen for value in node.inputs)
        if behind:
            found.add(node_name(node))
        if behind or node_name(node) in names:
            seen.update(node.outputs)
    return found


def _take_back(
    model: ir.Model,
    given: ir.Model,
    outcomes: Sequence[Outcome],
    feeds: Sequence[Mapping[str, np.ndarray]],
    request: QuantizeRequest,
    log: Callable[[str], None],
    judged: Callable[[ir.Model], Judgement] | None,
) -> tuple[dict[str, str], Judgement | None]:
    """Why layers that were quantised are float32 again, by name; their reports say so, too."""
    backs: dict[str, str] = {}
    ranked = _ranked(model, given, outcomes, feeds, log) if request.floats or judged else []
    left = request.floats * sum(outcome.work for outcome in outcomes)
    rest = []
    for members, share in ranked:
        work = sum(outcome.work for outcome in members)
        if share >= WORTH and work <= left:
            left -= work
            _back(model, members, backs, f"takes back {100 * share:.0f} % of the error for little work")
        else:
            rest.append((members, share))
    if judged is None:
        return backs, None
    judgement = judged(model)
    while not _keeps(judgement, request):
        log(f"on held-out data {judgement}")
        if not rest:
            raise CompileError(
                f"the budget cannot be kept: with every layer in float32 {judgement}; nothing was written"
            )
        step = max(1, len(rest) // 4)  # the more are left, the further off the goal may be
        for members, share in rest[:step]:
            _back(model, members, backs, f"takes back {100 * share:.0f} % of the error, for the budget")
        rest = rest[step:]
        judgement = judged(model)
    return backs, judgement


def _keeps(judgement: Judgement, request: QuantizeRequest) -> bool:
    return (request.max_error is None or judgement.error <= request.max_error) and (
        request.max_drop is None or judgement.drop <= request.max_drop
    )


def _back(model: ir.Model, members: Sequence[Outcome], backs: dict[str, str], why: str) -> None:
    revert(model, members)
    for outcome in members:
        outcome.report["precision"] = STAYS
        backs[outcome.report["node"]] = f"stays in float32: that {why}"


def _ranked(
    model: ir.Model,
    given: ir.Model,
    outcomes: Sequence[Outcome],
    feeds: Sequence[Mapping[str, np.ndarray]],
    log: Callable[[str], None],
) -> list[tuple[list[Outcome], float]]:
    """The layers of each input, with the share of the outputs' squared error that goes with their
    quantisation: first what takes back most for its work."""
    wanted = outputs(given, feeds)
    whole = _error(outputs(model, feeds), wanted)
    found = []
    for members in by_input(outcomes):
        trial = model.clone()
        revert(trial, members)
        share = 1 - _error(outputs(trial, feeds), wanted) / whole if whole else 0.0
        found.append((members, share))
        for outcome in members:
            outcome.report["share"] = share
    log(f"ran the outputs with each of {len(found)} inputs taken back")
    return sorted(found, key=lambda item: -item[1] / max(sum(outcome.work for outcome in item[0]), 1))


def _error(found: Sequence[Mapping[str, np.ndarray]], wanted: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Squared distance of the float outputs, each relative to its own square."""
    total = 0.0
    for name in wanted[0]:
        a, b = (np.concatenate([batch[name].ravel() for batch in run]) for run in (found, wanted))
        if b.dtype.kind == "f":
            square = float(np.square(b.astype(np.float64)).sum())
            total += float(np.square(a.astype(np.float64) - b).sum()) / (square or 1.0)
    return total
