"""What each pattern would do to each layer alone: the error of its output, on the inputs of the dense model.

The curves that `allocate` chooses from.  Layers that read the same values share one matrix of moments, and
one such set is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import Layer
from sparsec.passes.prune import Pattern, Problem, pose
from sparsec.passes.prune.places import find_place
from sparsec.passes.prune.walk import Observe, Settings, fit, observe


@dataclass(frozen=True, eq=False)
class Trial:
    """A layer pruned by itself: its canonical weight `[out, taps, in]`, and its output's squared error
    relative to the dense output."""

    weight: np.ndarray
    error: float


def problems(layers: Sequence[Layer], dense: Observe, settings: Settings) -> list[Problem]:
    """For each of `layers`, which are not grouped, its problem `[out, taps * in]` on the dense inputs."""
    places = [find_place(layer, set()) for layer in layers]
    moments = observe(places, dense, dense, settings.mask)
    return [
        pose(
            moments[place.layer.key][0],
            place.layer.weight.astype(np.float64).reshape(place.layer.weight.shape[0], -1),
            free_bias=place.free_bias,
            bias=place.bias,
            damping=settings.damping,
        )
        for place in places
    ]


def distortion(
    options: Sequence[tuple[Layer, Sequence[Pattern]]],
    dense: Observe,
    settings: Settings,
    *,
    keep: Callable[[Layer, Mapping[Pattern, Trial]], None],
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Calls `keep(layer, {pattern: trial})` for every layer; what it does not keep is forgotten."""
    by_input: dict[str, list[tuple[Layer, Sequence[Pattern]]]] = {}
    for layer, patterns in options:
        by_input.setdefault(layer.node.inputs[0].name, []).append((layer, patterns))
    done = 0
    for members in by_input.values():
        places = {id(layer): find_place(layer, set()) for layer, _ in members}
        moments = observe(list(places.values()), dense, dense, settings.mask)
        for layer, patterns in members:
            done += 1
            log(f"{done}/{len(options)} {node_name(layer.node)}: {len(patterns)} patterns")
            keep(layer, {p: _trial(places[id(layer)], moments[layer.key], p, settings) for p in patterns})


def _trial(place, moments, pattern: Pattern, settings: Settings) -> Trial:
    weight, _, reports = fit([place], moments, pattern, settings)
    return Trial(weight, float(np.mean([report["error_after"] for report in reports])))
