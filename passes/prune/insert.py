"""Put a pattern into a model with calibration: choose the layers, walk them, report each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_choice import Choice
from sparsec.passes.nm_layers import Layer, find_layers, put
from sparsec.passes.nm_pattern import NM
from sparsec.passes.nm_recognise import tail
from sparsec.passes.prune import Pattern, Unstructured
from sparsec.passes.prune.densities import DENSITIES
from sparsec.passes.prune.low_rank import add_terms, cannot_have
from sparsec.passes.prune.places import cannot
from sparsec.passes.prune.sweep import sweep
from sparsec.passes.prune.walk import Memory, Observe, Outcome, Settings, walk

NAME = "prune"


def insert(
    model: ir.Model,
    pattern: Pattern | Callable[[Layer], Pattern | str | None],
    dense: Observe,
    pruned: Observe,
    settings: Settings,
    choice: Choice,
    *,
    again: Iterable[tuple[Observe, Observe]] = (),
    term: tuple[int, tuple[Observe, Observe]] | None = None,
    memory: Memory | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[list[Finding], list[dict]]:
    """Prune `model` in place; a finding for each layer, and the reports (JSON) of those that were pruned.

    `pattern` may be a function of the layer; None, or a text that says why, leaves one dense. An N:M weight
    is read by its operator of domain ai.sparsec afterwards; any other stays with the operator that it had.
    Raises `PassError` as `walk` does, and for a glob of `choice` that matches nothing. For each pair of
    observers, of the dense model and of `model`, in `again` there is one sweep more (`sweep`); `term` is the
    rank of what is put beside each pruned layer then (`low_rank`), with its observers.
    """
    candidates = list(find_layers(model))
    wanted, reasons = choose(candidates, model.graph, pattern, choice)
    if isinstance(pattern, Unstructured) and settings.spread != "uniform":
        wanted, whole = _spread(wanted, pattern, settings.spread)
        reasons |= {id(layer): f"spread={settings.spread} keeps all of its weights" for layer in whole}
    outcomes = walk(model, wanted, dense, pruned, settings, memory=memory, log=log)
    for number, observers in enumerate(again, 2):
        log(f"sweep {number}")
        outcomes = _sweep(model, outcomes, choice, observers, settings, log)
    if term is not None:
        log(f"terms of rank {term[0]}")
        outcomes = _add_terms(model, outcomes, *term, settings, log)
    applied, reports = {}, []
    for outcome in outcomes:
        layer = outcome.layer
        name, before, after = node_name(layer.node), layer.before, layer.before
        if isinstance(outcome.pattern, NM):
            put(model, layer, outcome.pattern, outcome.weight)
            after = layer.after
        applied[id(layer)] = Finding(NAME, name, "applied", _reason(outcome), before, after)
        reports.append({"node": name, "weights": layer.weight.size, **_mean(outcome.reports)})
    for layer in candidates:
        if (reason := reasons.get(id(layer))) is not None:
            name = node_name(layer.node)
            applied[id(layer)] = Finding(NAME, name, "declined", reason, layer.before, layer.before)
    return [applied[id(layer)] for layer in candidates], reports


def choose(
    candidates: Sequence[Layer],
    graph: ir.Graph,
    pattern: Pattern | Callable[[Layer], Pattern | str | None],
    choice: Choice,
) -> tuple[list[tuple[Layer, Pattern]], dict[int, str]]:
    """The layers to be pruned, each with its pattern, and by `id` why the others are not."""
    choice.check([node_name(layer.node) for layer in candidates])
    wanted: list[tuple[Layer, Pattern]] = []
    reasons: dict[int, str] = {}
    for layer in candidates:
        asked = pattern(layer) if callable(pattern) else pattern
        here = asked.within(layer.weight.shape[0] // layer.groups) if isinstance(asked, NM) else asked
        reason = choice.why_not(layer, here if isinstance(here, NM) else None) or cannot(layer)
        if reason is None and (asked is None or isinstance(asked, str)):
            reason = asked or "it stays dense in the chosen allocation"
        if reason is None and layer.node.graph is not graph:
            reason = "it is in a subgraph, whose values calibration cannot see"
        if reason is None:
            wanted.append((layer, here))
        else:
            reasons[id(layer)] = reason
    return wanted, reasons


def _add_terms(
    model: ir.Model,
    outcomes: Sequence[Outcome],
    rank: int,
    observers: tuple[Observe, Observe],
    settings: Settings,
    log: Callable[[str], None],
) -> list[Outcome]:
    """`outcomes` with a low-rank term beside each layer that can have one; the report tells its rank."""
    able = [outcome.layer for outcome in outcomes if cannot_have(outcome.layer, rank) is None]
    found = add_terms(model, _now(model, able), rank, *observers, settings, log)
    made = []
    for outcome in outcomes:
        weight, error = found.get(outcome.layer.node, (outcome.weight, None))
        update = {"rank": 0} if error is None else {"rank": rank, "error_after": error}
        reports = tuple(report | update for report in outcome.reports)
        made.append(replace(outcome, weight=weight, reports=reports))
    return made


def _sweep(
    model: ir.Model,
    outcomes: Sequence[Outcome],
    choice: Choice,
    observers: tuple[Observe, Observe],
    settings: Settings,
    log: Callable[[str], None],
) -> list[Outcome]:
    """`outcomes` after one sweep over all layers that `choice` names, also those too small to be pruned."""
    named = replace(choice, min_size=0)
    layers = [
        layer
        for layer in find_layers(model)
        if layer.node.graph is model.graph and not named.why_not(layer, None) and not cannot(layer)
    ]
    found = sweep(model, layers, *observers, settings, log)
    renewed = []
    for outcome in outcomes:
        weight, error = found[outcome.layer.node]
        reports = tuple(report | {"error_after": error} for report in outcome.reports)
        renewed.append(replace(outcome, weight=weight, reports=reports))
    return renewed


def _now(model: ir.Model, layers: Sequence[Layer]) -> list[Layer]:
    """The same layers with the weights that they read now."""
    wanted = {layer.node for layer in layers}
    return [layer for layer in find_layers(model) if layer.node in wanted]


def _spread(
    wanted: Sequence[tuple[Layer, Pattern]], pattern: Unstructured, name: str
) -> tuple[list[tuple[Layer, Pattern]], list[Layer]]:
    """The layers with a density of their own each, and those that are left whole."""
    layers = [layer for layer, _ in wanted]
    shares = DENSITIES[name]([layer.weight for layer in layers], 1 - pattern.sparsity)
    kept = list(zip(layers, shares, strict=True))
    some = [(layer, replace(pattern, sparsity=1 - float(share))) for layer, share in kept if share < 1]
    return some, [layer for layer, share in kept if share >= 1]


def _reason(outcome: Outcome) -> str:
    mean = _mean(outcome.reports)
    rest = tail(outcome.pattern, outcome.layer.weight.shape[-1]) if isinstance(outcome.pattern, NM) else ""
    term = f" with a term of rank {mean['rank']}" if mean.get("rank") else ""
    return (
        f"{outcome.pattern} by {mean['method']}: keeps {100 * mean['kept']:.1f} % of the weights and "
        f"{100 * mean['energy']:.1f} % of their energy; output error {100 * mean['error_before']:.2f} % "
        f"masked, {100 * mean['error_after']:.2f} % reconstructed{term}{rest}"
    )


def _mean(reports: Sequence[dict]) -> dict:
    """One report for all groups of a convolution: they are of equal size."""
    first = reports[0]
    return {
        key: float(np.mean([report[key] for report in reports])) if isinstance(value, float) else value
        for key, value in first.items()
    }
