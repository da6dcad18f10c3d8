"""Weights of 8 or 4 bits on calibration data: the integers of least error of a layer's output.

The scales of groups are chosen first, for weights of least squares and by how much each input channel
counts; integers are found with them on the layer's Gram matrix (`rounding`). The walk is that of pruning: a
layer is fitted to what the model computes in float32, on the inputs that the rounded layers before it give; a
bias that is free corrects the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import PassError
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import Layer
from sparsec.passes.prune import Problem
from sparsec.passes.prune.least_squares import on_support as refit
from sparsec.passes.prune.places import Place
from sparsec.passes.prune.walk import Observe, Settings, by_group, walk
from sparsec.passes.quantize.grid import Grid
from sparsec.passes.quantize.groups import best_scales, nearest
from sparsec.passes.quantize.rounding import descent, on_support
from sparsec.passes.quantize.seen import not_finite


@dataclass(frozen=True, eq=False)
class Rounded:
    """int8 `values [n, k]` and float32 `scale [n, groups]`, and the squared error of the output relative to
    its variance: `before` with weights rounded to the nearest, `after` as fitted."""

    values: np.ndarray
    scale: np.ndarray
    before: float
    after: float


def fit(
    model: ir.Model,
    layers: Sequence[Layer],
    bits: int,
    group: int,
    dense: Observe,
    rounded: Observe,
    mask: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[tuple, Rounded]:
    """By `Layer.key` the new weights of the matrix products `layers`; `model` reads them, in float32.

    `dense` and `rounded` observe the model as it was given and `model` itself, as `prune.walk` says; `mask`
    is a graph input that is zero where a row is padding.
    """
    found: dict[tuple, Rounded] = {}

    def solve(places: Sequence[Place], moments: Sequence, _: None, settings: Settings):
        layer = places[0].layer
        if not all(np.all(np.isfinite(sums.yy)) for sums in moments):
            raise PassError(not_finite(f"the output of the layer '{node_name(layer.node)}'"))
        keeps = layer.before == layer.after  # an N:M operator, whose zeros stay
        weight, bias, (made,) = by_group(
            places, moments, settings, lambda problem, taps: _rounded(problem, keeps, bits, group)
        )
        found[layer.key] = made
        return weight, bias, [{"error_before": made.before, "error_after": made.after}]

    settings = Settings(descent.__name__, mask=mask)
    walk(model, [(layer, None) for layer in layers], dense, rounded, settings, solve=solve, log=log)
    return found


def _rounded(problem: Problem, keeps: bool, bits: int, group: int) -> tuple[np.ndarray, Rounded]:
    """The weight as its integers make it, and those; where it `keeps` its zeros, on its support."""
    kept = problem.dense != 0
    # A channel that makes its bias alone stays so: least squares finds only noise for it.
    support = kept if keeps else np.broadcast_to(kept.any(axis=1, keepdims=True), kept.shape)
    start = refit(problem, support) if keeps else np.where(support, problem.target, 0.0)
    importance = (np.diag(problem.gram) / np.max(np.diag(problem.gram))).astype(np.float32)
    scale = best_scales(start.astype(np.float32), bits, group, importance)
    steps, most = _spread(scale, group, start.shape), 1 << bits - 1
    grid = Grid(np.where(steps == 0, np.float32(1), steps), 0, -most, most - 1)
    integers = on_support(problem, start, grid, support, descent)
    weight = integers * steps
    plain, by_weight, _ = nearest(problem.dense.astype(np.float32), bits, group)
    before = problem.error(plain * _spread(by_weight, group, start.shape))
    return weight, Rounded(integers.astype(np.int8), scale, before, problem.error(weight))


def _spread(scale: np.ndarray, group: int, shape: tuple[int, int]) -> np.ndarray:
    """float64 `[n, k]`: of each weight the scale of its group."""
    return np.repeat(scale.astype(np.float64), group, axis=1)[:, : shape[1]]
