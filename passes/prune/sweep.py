"""Once more over a pruned model: every layer is refitted, its zeros as they are.

The first walk has fitted each layer to what the dense model has before the activation. A sweep fits it to
what the activation behind it lets through (`Place.unseen`), with the inputs that the layers refitted before
it now give, and takes along the layers that were not pruned. It needs one pass over the data; several bring
the error further down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from sparsec.passes.nm_layers import Layer
from sparsec.passes.prune.least_squares import on_support
from sparsec.passes.prune.moments import Problem
from sparsec.passes.prune.walk import Clock, Observe, Settings, by_group, observe, put, stages


def sweep(
    model: ir.Model,
    layers: Sequence[Layer],
    dense: Observe,
    pruned: Observe,
    settings: Settings,
    log: Callable[[str], None] = lambda line: None,
) -> dict[ir.Node, tuple[ir.Value, float]]:
    """Refit `layers` in place; for the node of each the weight that it reads now, and the squared error of
    what the activation behind it lets through, relative to the output that was wanted."""
    clock = Clock(layers, log)
    found = {}
    for shared, places in stages(model, layers):
        moments = observe(places, dense, pruned, settings.mask, behind=True)
        for key, same in shared.items():
            of_key = [place for place in places if place.layer.key == key]
            weight, bias, errors = by_group(of_key, moments[key], settings, _refit)
            value = put(model, same, of_key, weight, bias)
            found |= {layer.node: (value, float(np.mean(errors))) for layer in same}
            clock.done(same[0], errors)
    return found


def _refit(problem: Problem, taps: int) -> tuple[np.ndarray, float]:
    weight = on_support(problem, problem.dense != 0)
    return weight, problem.error(weight)
