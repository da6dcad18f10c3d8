"""Quantise a whole model to 8 bits, layer by layer, each on the inputs that the layers before it now give.

The order, the sums and the targets are those of pruning (`prune.walk`): every layer is fitted to what the
dense model computes in its place, so it takes back what rounding has done so far. First the input of a stage
is put on a grid, with the migration that suits all layers that read it; then their weights are rounded, and
with a pattern pruned, on the inputs as they are quantised; a weight that comes pruned keeps its zeros. The
bias that least squares leaves free corrects what rounding does to the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import PassError
from sparsec.passes.graph import free_name, node_name
from sparsec.passes.nm_layers import Layer
from sparsec.passes.prune import Pattern, Problem, prune
from sparsec.passes.prune.least_squares import on_support as refit
from sparsec.passes.prune.places import Place
from sparsec.passes.prune.walk import Clock, Observe, by_group, observe, stages
from sparsec.passes.quantize.grid import fitted, symmetric
from sparsec.passes.quantize.migration import Choice, Migration, choose
from sparsec.passes.quantize.projection import JOINT, joint
from sparsec.passes.quantize.qdq import Source, absorb, insert_input, insert_weight, source
from sparsec.passes.quantize.rounding import ROUNDINGS, Round, gpfq, on_support
from sparsec.passes.quantize.seen import Seen, look, not_finite

PRUNED = 0.1
"""Zeros among the weights of a layer from which on they stay: 7:8 has an eighth."""


@dataclass(frozen=True)
class Settings:
    """`ranges`: keys of `ranges.RANGES`, of several the best for each input; `rounding`: a key of
    `rounding.ROUNDINGS`, `threshold` and `soft` those of its `gpfq`; `migrate`: see `migration`. `method`,
    `reconstruct`, `damping` and `mask` are those of `prune.walk.Settings`; `method` counts where there is a
    pattern."""

    ranges: tuple[str, ...]
    rounding: str
    migrate: bool = True
    method: str = "search"
    reconstruct: bool = True
    damping: float | None = None
    mask: str | None = None
    threshold: float = 0.0
    soft: bool = False

    @property
    def round(self) -> Round:
        """With a threshold `gpfq`; no other method has one (PassError)."""
        if not self.threshold:
            return ROUNDINGS[self.rounding]
        if self.rounding != "gpfq":
            raise PassError(f"quantize: a threshold needs rounding gpfq, found {self.rounding}")
        return partial(gpfq, threshold=self.threshold, soft=self.soft)


@dataclass(frozen=True, eq=False)
class Input:
    """What several layers read: `value` is what is quantised, after the migration; `choice` says how.

    `free` whether the migration costs nothing at run time."""

    value: ir.Value
    choice: Choice
    free: bool
    rows: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """A layer that was quantised; weight and bias of its `place` are its own in float, as the migrated input
    asks for them."""

    place: Place
    input: Input
    report: dict

    @property
    def layer(self) -> Layer:
        return self.place.layer

    @property
    def work(self) -> int:
        """Multiply-adds on the calibration data."""
        return self.input.rows * self.layer.weight.size


def walk(
    model: ir.Model,
    wanted: Sequence[tuple[Layer, Pattern | None]],
    dense: Observe,
    quantised: Observe,
    settings: Settings,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[list[Outcome], dict[ir.Node, str]]:
    """Quantise the layers `wanted` in place, with a pattern where there is one; and why some were not.

    `dense` and `quantised` observe the model as it was given and `model` itself, as `prune.walk` says. No two
    of the layers may share a weight.
    """
    patterns = {layer.node: pattern for layer, pattern in wanted}
    clock = Clock([layer for layer, _ in wanted], log)
    outcomes: dict[ir.Node, Outcome] = {}
    refused: dict[ir.Node, str] = {}
    for _, places in stages(model, [layer for layer, _ in wanted]):
        seen = look(places, quantised, settings.mask)
        ready: list[tuple[Place, Input]] = []
        for name, members in _by_input(places).items():
            if seen[name].dead:
                reason = f"its input '{name}' is zero on all calibration data, which gives it no range"
                refused |= {place.layer.node: reason for place in members}
            else:
                ready += _put_on_grid(model, members, seen[name], settings, outcomes)
        if not ready:
            continue
        moments = observe([place for place, _ in ready], dense, quantised, settings.mask)
        for place, read in ready:
            pattern = patterns[place.layer.node]
            made = _quantise(model, place, read, moments[place.layer.key], pattern, settings)
            outcomes[place.layer.node] = made
            clock.done(place.layer, [made.report["error_after"]])
    return [outcomes[layer.node] for layer, _ in wanted if layer.node in outcomes], refused


def _by_input(places: Sequence[Place]) -> Mapping[str, list[Place]]:
    """Those that read the same value in the same way."""
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.layer.node.inputs[0].name, []).append(place)
    return found


def read_on_grid(places: Sequence[Place], seen: Seen, settings: Settings) -> tuple[Choice, Source | None]:
    """How the value that all of `places` read is quantised, and where its migration can go at no cost."""
    layers = [place.layer for place in places]
    value, first = layers[0].node.inputs[0], layers[0]
    alike = len({(layer.convolves, layer.groups, layer.weight.shape[1:]) for layer in layers}) == 1
    at = source(value, layers)
    shiftable = not first.convolves and all(p.free_bias for p in places) and (at is None or at.shiftable)
    weights = [grouped(layer) for layer in (layers if alike else layers[:1])]
    choice = choose(
        seen,
        np.concatenate(weights, axis=1),
        settings.ranges,
        scalable=settings.migrate and alike and value.shape is not None,
        shiftable=shiftable,
        free=at is not None,
        passed_on=first.convolves and bool({use.node for use in value.uses()} - {la.node for la in layers}),
    )
    return choice, at


def _put_on_grid(
    model: ir.Model,
    places: Sequence[Place],
    seen: Seen,
    settings: Settings,
    outcomes: dict[ir.Node, Outcome],
) -> list[tuple[Place, Input]]:
    """The places with their migrated weights, and their input. A migration that goes into a layer of
    `outcomes` changes what that layer is in float, too."""
    layers = [place.layer for place in places]
    value = layers[0].node.inputs[0]
    choice, at = read_on_grid(places, seen, settings)
    left = choice.migration
    if at is not None and (left.scales or left.shifts):
        absorb(model, at, left)
        if at.layer in outcomes:
            made = outcomes[at.layer]
            outcomes[at.layer] = replace(made, place=_divided(made.place, left))
        value.name = free_name(model, f"{value.name}_migrated")  # the value of the old name has been observed
        left = Migration.none(len(left.scale))
    moved = insert_input(model, value, left, choice.grid, layers)
    read = Input(moved, choice, at is not None, seen.count)
    return [(_migrated(place, choice.migration), read) for place in places]


def _migrated(place: Place, migration: Migration) -> Place:
    """`place` with the weight and the bias that the migrated input asks for."""
    layer = place.layer
    weight = grouped(layer).astype(np.float64)
    bias = place.bias + (weight @ migration.columns(migration.shift, weight).swapaxes(1, 2)).reshape(-1)
    weight = migration.weight(weight).reshape(layer.weight.shape)
    return replace(place, layer=replace(layer, weight=weight), bias=bias)


def _divided(place: Place, migration: Migration) -> Place:
    """`place` with a weight and a bias that make what is migrated."""
    layer, scale = place.layer, migration.scale
    weight = layer.weight / scale[:, None, None]
    bias = (place.bias - migration.shift) / scale
    return replace(place, layer=replace(layer, weight=weight), bias=bias)


def grouped(layer: Layer) -> np.ndarray:
    """`[groups, out, taps * in]`"""
    return layer.weight.reshape(layer.groups, layer.weight.shape[0] // layer.groups, -1)


def _quantise(
    model: ir.Model,
    place: Place,
    read: Input,
    moments: Sequence,
    pattern: Pattern | None,
    settings: Settings,
) -> Outcome:
    if not all(np.all(np.isfinite(sums.yy)) for sums in moments):
        raise PassError(not_finite(f"the output of the layer '{node_name(place.layer.node)}'"))

    def solve(problem: Problem, taps: int) -> tuple[np.ndarray, dict]:
        return _rounded(problem, taps, pattern, settings)

    weight, bias, told = by_group([place], moments, settings, solve)
    integers = np.concatenate([group["integers"] for group in told]).reshape(weight.shape)
    scale = np.concatenate([group["grid"].scale[:, 0] for group in told])
    insert_weight(model, place, integers, scale, bias, read.choice.grid.scale)
    choice = read.choice
    report = {
        "node": node_name(place.layer.node),
        "precision": "int8",
        "pattern": str(pattern) if pattern is not None else "dense",
        "range": choice.method,
        "low": choice.low,
        "high": choice.high,
        "migration": choice.migration.name + (", free" if read.free and choice.migration.scales else ""),
        "kept": float(np.mean(integers != 0)),
        "error_plain": choice.plain,
        "error_before": float(np.mean([group["before"] for group in told])),
        "error_after": float(np.mean([group["after"] for group in told])),
    }
    return Outcome(place, read, report)


def given_support(weight: np.ndarray) -> np.ndarray:
    """Where a weight `[rows, K]` that brings its zeros may have values: bool `[rows, K]`.

    A channel that makes its bias alone stays so, since least squares finds only noise for it. Among the
    others zeros are meant from `PRUNED` on.
    """
    kept = weight != 0
    alive = kept.any(axis=1, keepdims=True)
    pruned = kept.sum() <= (1 - PRUNED) * alive.sum() * kept.shape[1]
    return kept if pruned else np.broadcast_to(alive, kept.shape)


def _rounded(
    problem: Problem, taps: int, pattern: Pattern | None, settings: Settings
) -> tuple[np.ndarray, dict]:
    """The weight `[rows, taps * in]` as its integers make it, and those with their grid and errors."""
    if pattern is None:
        support = given_support(problem.dense)
        start = problem.target if support.all() else refit(problem, support)
        plain = problem.dense
    else:
        if settings.method == JOINT:
            start, support = joint(problem, pattern, taps)
        else:
            made = prune(problem, pattern, settings.method, taps=taps, reconstruct=settings.reconstruct)
            start, support = made.weight, made.mask
        plain = start
    grid = fitted(start, np.diag(problem.gram))
    integers = on_support(problem, start, grid, support, settings.round)
    weight = integers * grid.scale.astype(np.float64)
    before = problem.error(symmetric(plain).nearest(plain))
    return weight, {"integers": integers, "grid": grid, "before": before, "after": problem.error(weight)}
