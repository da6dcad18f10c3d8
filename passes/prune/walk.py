"""Prune a whole model, layer by layer, each on the inputs that the layers pruned before it now give.

Every layer is fitted to what the *dense* model computes in its place, so that it also takes back what pruning
has done so far (`places`). Layers whose inputs are all known make one stage; the activations of one stage are
needed at a time, and of them only sums are kept (`moments`).

The model itself is run by the caller: `dense(names)` and `pruned(names)` yield, batch by batch and in the
same order, the values of those names: the one of the model as it was given, the other of it as it is now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import add_constant, node_name, nodes, remove_dead
from sparsec.passes.nm_layers import Layer
from sparsec.passes.prune import Pattern, Problem, pose, prune
from sparsec.passes.prune.moments import Moments
from sparsec.passes.prune.places import Place, find_place
from sparsec.passes.prune.rows import input_rows, output_rows

T = TypeVar("T")
Observe = Callable[[Sequence[str]], Iterator[Mapping[str, np.ndarray]]]
Fit = Callable[..., tuple[np.ndarray, np.ndarray, list[dict]]]
"""What takes and returns the same as `fit`."""


class Memory(Protocol):
    """Where finished layers are kept, so that an interrupted walk goes on where it was."""

    def recall(self, name: str) -> tuple[np.ndarray, np.ndarray, list[dict]] | None: ...

    def remember(self, name: str, weight: np.ndarray, bias: np.ndarray, reports: list[dict]) -> None: ...


@dataclass(frozen=True)
class Settings:
    """`damping`: see `moments.pose`; `mask`: a graph input that is zero where a row is padding; `spread`: a
    key of `densities.DENSITIES`, for unstructured patterns."""

    method: str
    reconstruct: bool = True
    damping: float | None = None
    mask: str | None = None
    spread: str = "uniform"


@dataclass(frozen=True, eq=False)
class Outcome:
    """A layer that was pruned: the weight that its node reads now, and one report per convolution group.

    `pattern` is None where something else was done to it than pruning."""

    layer: Layer
    pattern: Pattern | None
    weight: ir.Value
    reports: tuple[dict, ...]


def walk(
    model: ir.Model,
    wanted: Sequence[tuple[Layer, Pattern | None]],
    dense: Observe,
    pruned: Observe,
    settings: Settings,
    *,
    memory: Memory | None = None,
    solve: Fit | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Prune the layers `wanted` in place, in the order in which their inputs become known, or do to them
    what `solve` does.

    Layers that read one weight in the same way are given one pruned weight, fitted to all whose inputs are
    known when the first is reached. Raises `PassError` for an unknown method.
    """
    solve = solve or fit
    patterns = {layer.key: pattern for layer, pattern in reversed(wanted)}
    clock = Clock([layer for layer, _ in wanted], log)
    outcomes: list[Outcome] = []
    for shared, places in stages(model, [layer for layer, _ in wanted]):
        fitted = _recall(places, memory)
        missing = [place for place in places if place.layer.key not in fitted]
        if missing:
            moments = observe(missing, dense, pruned, settings.mask)
        for key, layers in shared.items():
            of_key = [place for place in places if place.layer.key == key]
            if key not in fitted:
                fitted[key] = solve(of_key, moments[key], patterns[key], settings)
                if memory is not None:
                    memory.remember(node_name(layers[0].node), *fitted[key])
            weight, bias, reports = fitted[key]
            value = put(model, layers, of_key, weight, bias)
            outcomes += [Outcome(layer, patterns[key], value, tuple(reports)) for layer in layers]
            clock.done(layers[0], [report["error_after"] for report in reports])
    order = {id(layer): i for i, (layer, _) in enumerate(wanted)}
    return sorted(outcomes, key=lambda outcome: order[id(outcome.layer)])


def stages(
    model: ir.Model, layers: Sequence[Layer]
) -> Iterator[tuple[dict[tuple, list[Layer]], list[Place]]]:
    """In the order of data, the layers whose inputs no later one has a part in: those that read one weight
    by their key, and the places of those that can be seen. Each stage is done before the next is taken."""
    pending = list(layers)
    while pending:
        computed = _computed(model, pending)
        ready = [layer for layer in pending if layer.node.inputs[0] in computed]
        shared: dict[tuple, list[Layer]] = {layer.key: [] for layer in ready}
        for layer in pending:
            if layer.key in shared:
                shared[layer.key].append(layer)
        yield shared, [find_place(layer, computed) for layer in ready]
        pending = [layer for layer in pending if layer.key not in shared]


def _computed(model: ir.Model, pending: Sequence[Layer]) -> set[ir.Value]:
    """The values that no pending layer has a part in."""
    waiting = {layer.node for layer in pending}
    known = set(model.graph.inputs) | set(model.graph.initializers.values())
    for node in nodes(model):
        if node not in waiting and all(v is None or v in known for v in node.inputs):
            known.update(node.outputs)
    return known


def observe(
    places: Sequence[Place], dense: Observe, pruned: Observe, mask: str | None, *, behind: bool = False
) -> dict[tuple, list[Moments]]:
    """Layer key -> the moments of each convolution group. Places with the same input share a matrix. With
    `behind` the wanted values are those of `Place.unseen`."""
    sets: dict[tuple, list[Place]] = {}
    for place in places:
        layer = place.layer
        alone = id(layer) if layer.convolves else (layer.standard, layer.node.inputs[0].name)
        sets.setdefault(alone, []).append(place)
    sums = {
        key: [
            Moments.empty(
                members[0].layer.weight[0].size,
                sum(p.layer.weight.shape[0] for p in members) // members[0].layer.groups,
            )
            for _ in range(members[0].layer.groups)
        ]
        for key, members in sets.items()
    }
    read = [p.layer.node.inputs[0].name for p in places] + [
        p.other.name for p in places if p.other is not None
    ]
    read += [mask] if mask else []
    goals = list(dict.fromkeys(p.goal.name for p in places))
    for want, have in zip(dense(goals), pruned(list(dict.fromkeys(read))), strict=True):
        for key, members in sets.items():
            first = members[0].layer
            x = input_rows(first, have[first.node.inputs[0].name])
            y = np.concatenate([_wanted(p, want, have, x if behind else None) for p in members], axis=1)
            counts = have[mask].reshape(-1) != 0 if mask else None
            if counts is not None and len(counts) == len(y):
                x, y = x[:, counts], y[counts]
            for total, rows, out in zip(sums[key], x, np.split(y, first.groups, axis=1), strict=True):
                total.add(rows, out)
    found: dict[tuple, list[Moments]] = {}
    for key, members in sets.items():
        start = 0
        for place in members:
            size = place.layer.weight.shape[0] // place.layer.groups
            parts = [total.part(slice(start, start + size)) for total in sums[key]]
            start += size
            if place.layer.key in found:
                for old, new in zip(found[place.layer.key], parts, strict=True):
                    old.merge(new)
            else:
                found[place.layer.key] = parts
    return found


def _wanted(
    place: Place,
    want: Mapping[str, np.ndarray],
    have: Mapping[str, np.ndarray],
    x: np.ndarray | None,
) -> np.ndarray:
    """`[rows, out]`; with the input rows `x` `[groups, rows, K]` in the light of what the layer makes now."""
    goal = output_rows(place.layer, want[place.goal.name]).astype(np.float64)
    other = output_rows(place.layer, have[place.other.name]) if place.other is not None else 0.0
    if x is not None:
        weights = place.layer.weight.reshape(len(x), -1, x.shape[-1])
        now = [rows @ weight.T for rows, weight in zip(x, weights, strict=True)]
        goal = place.unseen(goal, np.concatenate(now, axis=1) + place.bias + other)
    return goal - other


def fit(
    places: Sequence[Place], moments: Sequence[Moments], pattern: Pattern, settings: Settings
) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """The canonical weight, the bias and the reports of one weight."""

    def solve(problem: Problem, taps: int) -> tuple[np.ndarray, dict]:
        made = prune(problem, pattern, settings.method, taps=taps, reconstruct=settings.reconstruct)
        return made.weight, made.report.to_json()

    return by_group(places, moments, settings, solve)


def by_group(
    places: Sequence[Place],
    moments: Sequence[Moments],
    settings: Settings,
    solve: Callable[[Problem, int], tuple[np.ndarray, T]],
) -> tuple[np.ndarray, np.ndarray, list[T]]:
    """The canonical weight and the bias of one weight, and what `solve` tells of each group besides.

    `solve(problem, taps)` gives the weight `[rows, taps * in]` of one group.
    """
    place = places[0]
    free = all(p.free_bias for p in places) and len(places) == 1
    groups = place.layer.groups
    out, taps, _ = place.layer.weight.shape
    old = place.layer.weight.astype(np.float64).reshape(groups, out // groups, -1)
    biases = place.bias.reshape(groups, -1)
    weights, offsets, told = [], [], []
    for weight, bias, sums in zip(old, biases, moments, strict=True):
        problem = pose(sums, weight, free_bias=free, bias=bias, damping=settings.damping)
        solved, tells = solve(problem, taps)
        weights.append(solved)
        mean = sums.y / max(sums.count, 1.0)
        offsets.append(mean - solved @ problem.mean if free else bias)
        told.append(tells)
    return np.concatenate(weights).reshape(place.layer.weight.shape), np.concatenate(offsets), told


def put(
    model: ir.Model, layers: Sequence[Layer], places: Sequence[Place], weight: np.ndarray, bias: np.ndarray
) -> ir.Value:
    """Have `layers`, which read one weight, read the canonical `weight`; its value is returned."""
    first = layers[0]
    value = add_constant(model, f"{first.value.name.removesuffix('_pruned')}_pruned", first.stored(weight))
    old = [layer.value for layer in layers]
    for layer in layers:
        layer.node.replace_input_with(list(layer.node.inputs).index(layer.value), value)
    if len(places) == 1 and places[0].free_bias:
        places[0].set_bias(model, bias)
    remove_dead(old)
    return value


def _recall(places: Sequence[Place], memory: Memory | None) -> dict[tuple, tuple]:
    found = {}
    for place in places if memory is not None else ():
        kept = memory.recall(node_name(place.layer.node))
        if kept is not None and place.layer.key not in found:
            found[place.layer.key] = kept
    return found


TELLING = 0.05
"""Of all work, what must be done before it says how long the rest takes: a small first layer says nothing."""


class Clock:
    """Says what is done and how long the rest will take, by the work that elimination costs: K^2 * N."""

    def __init__(self, layers: Sequence[Layer], log: Callable[[str], None]):
        works = {layer.key: self._work(layer) for layer in layers}
        self.total, self.count, self.log = sum(works.values()), len(works), log
        self.start, self.finished, self.spent = time.monotonic(), 0, 0.0

    @staticmethod
    def _work(layer: Layer) -> float:
        return float(layer.weight.size) * layer.weight[0].size

    def done(self, layer: Layer, errors: Sequence[float]) -> None:
        self.finished += 1
        self.spent += self._work(layer)
        error = sum(errors) / len(errors)
        said = f"{self.finished}/{self.count} {node_name(layer.node)}: output error {100 * error:.2f} %"
        if self.spent >= TELLING * self.total:
            left = int((time.monotonic() - self.start) * (self.total / self.spent - 1))
            said += f", {left // 60} min {left % 60} s left"
        self.log(said)
