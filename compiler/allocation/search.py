"""Choose a pattern for every layer so that the whole model keeps its budget.

curves      what each pattern does to each layer alone, and what that does to the outputs
times       seconds of each layer in each pattern, on this machine
knapsack    the least error for every latency (`passes.prune.allocate`)
search      prune for real, judge on held-out data, move along the frontier until the budget is kept
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec.compiler.allocation.budget import Budget, Judgement, judge, metric_for, outputs, split
from sparsec.compiler.allocation.sensitivity import changes
from sparsec.compiler.allocation.times import DENSE, layer_times, model_seconds
from sparsec.compiler.calibration import Replay
from sparsec.compiler.errors import CompileError
from sparsec.compiler.prune import PruneRequest, mask_input, prune_on
from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_choice import Choice
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune.allocate import Option, Point, frontier, knee
from sparsec.passes.prune.distortion import distortion
from sparsec.passes.prune.layout import Pattern
from sparsec.passes.prune.places import cannot
from sparsec.passes.prune.walk import Settings

POINTS = 33  # of the frontier, evenly spaced: one step is 3 % of what can be gained
ROUNDS = 5  # prunings of the whole model, enough to halve the way among POINTS until it is found
PROBES = 2  # batches on which sensitivities are measured


@dataclass(frozen=True, eq=False)
class Allocated:
    """The pruned model, its findings and per-layer reports, and the plan as JSON."""

    model: ir.Model
    findings: list[Finding]
    layers: list[dict]
    plan: dict


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known before anything is chosen: the frontier in `space`, and how to go to a point of it.

    `attempt(point)` prunes for real and judges on held-out samples; `seconds(model)` times a whole model.
    """

    space: "Space"
    attempt: Callable[[Point], tuple[Allocated, Judgement]]
    seconds: Callable[[ir.Model], float]


def allocate(
    model: ir.Model,
    request: PruneRequest,
    patterns: Sequence[Pattern],
    budget: Budget,
    metric: str | None,
    log,
) -> Allocated:
    """Raises CompileError where no choice of patterns keeps the budget, naming the closest one."""
    known = survey(model, request, patterns, metric, log)
    space = known.space
    point, made, judgement = _search(space, budget, known.attempt)
    log("time the pruned model")
    after = known.seconds(made.model)
    plan = {
        "patterns": {name: str(p) for name, p in space.chosen(point).items()},
        "dense_ms": 1e3 * space.seconds,
        "predicted_ms": 1e3 * space.seconds * space.latency(point),
        "measured_ms": 1e3 * after,
        "size": space.size(point),
        "predicted_error": point.error**0.5,
        "held_out": {"error": judgement.error, "cosine": judgement.cosine, "drop": judgement.drop},
        "frontier": [
            {"latency": space.latency(p), "size": space.size(p), "predicted_error": p.error**0.5}
            for p in space.points
        ],
    }
    return Allocated(made.model, made.findings, made.layers, plan)


def survey(
    model: ir.Model, request: PruneRequest, patterns: Sequence[Pattern], metric: str | None, log
) -> Survey:
    """Times and sensitivities of every layer in every pattern; `model` stays as it is."""
    seen, unseen = split(request.calib, model)
    judged_by = metric_for(metric, request.calib, unseen)
    shapes = {name: (1, *array.shape[1:]) for name, array in seen[0].items()}
    for value in model.graph.inputs:
        if isinstance(value.shape[0], int):
            shapes[value.name] = tuple(seen[0][value.name].shape)

    def seconds(timed: ir.Model) -> float:
        return model_seconds(timed, shapes, {n: a[: shapes[n][0]] for n, a in seen[0].items()})

    choices = _options(model, request, patterns, seen, shapes, log)
    if not choices:
        raise CompileError("no layer of the model can take one of the patterns; see `sparsec explain`")
    log("time the dense model")
    space = Space(choices, seconds(model), _weight_bytes(model))
    dense_outputs = outputs(model, unseen)

    def attempt(point: Point) -> tuple[Allocated, Judgement]:
        share, error = space.latency(point), point.error**0.5
        log(f"prune to {share:.2f} of the dense latency, predicted error {error:.3f}")
        pruned = model.clone()
        chosen = space.chosen(point)
        findings, reports = prune_on(
            pruned, lambda layer: chosen.get(node_name(layer.node)), seen, request, log
        )
        judgement = judge(dense_outputs, outputs(pruned, unseen), judged_by)
        log(f"on held-out data {judgement}")
        return Allocated(pruned, findings, reports, {}), judgement

    return Survey(space, attempt, seconds)


class Space:
    """The frontier of a model, and what its points mean for the whole of it.

    `choices`: the options of each layer, each with what it stands for and its bytes; first what was given,
    which is called None."""

    def __init__(
        self, choices: Mapping[str, Sequence[tuple[Option, object, float]]], seconds: float, size: int
    ):
        self.names = list(choices)
        self.choices = list(choices.values())
        self.seconds, self.bytes = seconds, size
        points = frontier([[option for option, _, _ in options] for options in self.choices])
        costs = np.linspace(points[0].cost, points[-1].cost, POINTS)
        near = {min(range(len(points)), key=lambda i, c=cost: abs(points[i].cost - c)) for cost in costs}
        self.points = [points[i] for i in sorted(near)]

    def chosen(self, point: Point) -> dict:
        """Name -> what was chosen, of those that do not stay as they were given."""
        picked = zip(self.names, self.choices, point.picks, strict=True)
        return {name: o[i][1] for name, o, i in picked if o[i][1] is not None}

    def latency(self, point: Point) -> float:
        """Relative to the dense model."""
        dense = sum(options[0][0].cost for options in self.choices)
        return max(0.0, 1 - (dense - point.cost) / self.seconds)

    def size(self, point: Point) -> float:
        """Bytes of weights relative to the dense model."""
        picked = zip(self.choices, point.picks, strict=True)
        return 1 - sum(options[0][2] - options[i][2] for options, i in picked) / self.bytes


def _search(space: Space, budget: Budget, attempt: Callable) -> tuple[Point, Allocated, Judgement]:
    gains = [p for p in space.points if space.chosen(p)]
    fitting = [
        p
        for p in gains
        if (budget.latency is None or space.latency(p) <= budget.latency)
        and (budget.size is None or space.size(p) <= budget.size)
    ]
    if not fitting:
        closest = space.points[-1]
        raise CompileError(
            f"no choice of patterns reaches the budget: the closest has {space.latency(closest):.2f} of the "
            f"dense latency and {space.size(closest):.2f} of its weights; nothing was written"
        )
    if not budget.judged:
        point = fitting[0] if budget.latency is not None or budget.size is not None else knee(gains)
        return point, *attempt(point)
    low, high, best, closest = 0, len(fitting) - 1, None, None
    for _ in range(ROUNDS):
        if low > high:
            break
        middle = (low + high) // 2
        made, judgement = attempt(fitting[middle])
        if judgement.keeps(budget):
            best, low = (fitting[middle], made, judgement), middle + 1
        else:
            closest, high = (fitting[middle], judgement), middle - 1
    if best is None:
        point, judgement = closest
        raise CompileError(
            f"no choice of patterns keeps the budget: at {space.latency(point):.2f} of the dense latency "
            f"{judgement}; nothing was written"
        )
    return best


def _options(model, request: PruneRequest, patterns, seen, shapes, log) -> dict[str, list]:
    """Node -> (option, pattern, bytes) of each way to store it, dense first."""
    chosen: list[tuple[Layer, list[Pattern]]] = []
    choice = Choice(request.layers, request.skip, request.min_size)
    candidates = list(find_layers(model))
    choice.check([node_name(layer.node) for layer in candidates])
    keys = set()
    for layer in candidates:
        rows = layer.weight.shape[0] // layer.groups
        own = list(dict.fromkeys(p.within(rows) if isinstance(p, NM) else p for p in patterns))
        own = [p for p in own if choice.why_not(layer, p if isinstance(p, NM) else None) is None]
        if own and cannot(layer) is None and layer.node.graph is model.graph and layer.key not in keys:
            keys.add(layer.key)
            chosen.append((layer, own))
    times = layer_times(model, {node_name(layer.node): own for layer, own in chosen}, shapes, log)
    chosen = [(layer, own) for layer, own in chosen if node_name(layer.node) in times]
    errors: dict[str, dict[Pattern, float]] = {}
    probes: dict[str, np.ndarray] = {}

    def keep(layer, trials):
        name = node_name(layer.node)
        errors[name] = {p: trial.error for p, trial in trials.items()}
        probes[name] = max(trials.values(), key=lambda trial: trial.error).weight.astype(layer.weight.dtype)

    settings = Settings(request.method, request.reconstruct, request.damping, mask_input(model, request.mask))
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        replay = Replay(model.clone(), seen, Path(folder))
        distortion(chosen, replay, settings, keep=keep, log=log)
    moved = changes(model, probes, seen[:PROBES], log)
    found = {}
    for layer, own in chosen:
        name = node_name(layer.node)
        worst = max(errors[name].values()) or 1.0
        rows, taps, k = layer.weight.shape
        found[name] = [(Option(DENSE, times[name][DENSE], 0.0), None, 4 * rows * taps * k)]
        for p in own:
            error = moved[name] * errors[name][p] / worst
            kept = p.kept_fraction(k) if isinstance(p, NM) else 1 - p.sparsity
            found[name].append((Option(str(p), times[name][str(p)], error), p, 4 * rows * taps * k * kept))
    return found


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
