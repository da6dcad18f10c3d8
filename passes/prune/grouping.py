"""Order the channels between layers so that a pattern costs less, before anything is pruned.

Blocks of rows and groups of columns are consecutive, but which channel stands where is free between two
layers (`channels`). For each set of channels the patterns of its makers and readers are tried on the dense
model's inputs, in turn with the search for a better order (`permutation`), and the order of least error is
taken. The model's function stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsec.passes.channels import ChannelSet, find_channels
from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import Layer
from sparsec.passes.nm_pattern import NM
from sparsec.passes.permute import permute
from sparsec.passes.prune import Pattern, Problem, Pruned, prune
from sparsec.passes.prune.distortion import problems
from sparsec.passes.prune.layout import Layout
from sparsec.passes.prune.permutation import (
    Maker,
    Reader,
    cluster,
    column_scores,
    row_costs,
    row_scores,
    search,
)
from sparsec.passes.prune.walk import Observe, Settings

NAME = "group"
TRIAL = "sparsegpt"
"""How a pattern is tried: one pass over the columns, then exact least squares."""
TURNS = 6
SETTLED = 0.004  # of the error gained in a turn: enough


@dataclass(frozen=True, eq=False)
class _Trial:
    """A layer and its pattern; `problem` has the layer's columns in the order found so far."""

    layer: Layer
    pattern: Pattern
    problem: Problem

    @property
    def taps(self) -> int:
        return self.layer.weight.shape[1]

    @property
    def layout(self) -> Layout:
        rows, columns = self.problem.dense.shape
        return Layout.of(self.pattern, rows, columns // self.taps, self.taps)

    def pruned(self, *, rows: np.ndarray | None = None, inputs: np.ndarray | None = None) -> Pruned:
        """With its rows or its inputs in another order."""
        problem = self.problem
        if rows is not None:
            problem = problem.rows_ordered(rows)
        if inputs is not None:
            problem = problem.ordered(_every_tap(inputs, self.taps))
        return prune(problem, self.pattern, TRIAL, taps=self.taps)


@dataclass(frozen=True, eq=False)
class _Attempt:
    """An order of channels, the summed errors of all layers with it, and what became of the makers."""

    order: np.ndarray
    error: float
    made: list[Pruned]


def _every_tap(inputs: np.ndarray, taps: int) -> np.ndarray:
    """An order of input channels as one of the columns `[taps * inputs]`."""
    return (np.arange(taps)[:, None] * len(inputs) + inputs).ravel()


def group(
    model: ir.Model,
    wanted: Sequence[tuple[Layer, Pattern]],
    dense: Observe,
    settings: Settings,
    log: Callable[[str], None] = lambda line: None,
) -> list[Finding]:
    """Permute the channels of `model` in place for the patterns `wanted`; a finding for each set of channels
    that they concern. `dense` observes the model as it is given. The layers of `wanted` are stale after."""
    patterns = {layer.node: pattern for layer, pattern in wanted}
    orders: dict[ir.Node, np.ndarray] = {}  # of a layer's inputs
    moves, findings = [], []
    for channels in find_channels(model):
        makers = [m for m in channels.makers if _block(m, patterns) > 1]
        readers = [r for r, inner in channels.readers if inner == 1 and isinstance(patterns.get(r.node), NM)]
        readers = [r for r in readers if patterns[r.node].m == patterns[readers[0].node].m]
        if not makers and not readers:
            continue
        first = channels.makers[0]
        name, kind = node_name(first.node), first.before
        reason = channels.refusal or _no_freedom(channels, makers, readers, patterns)
        if reason is not None:
            findings.append(Finding(NAME, name, "declined", f"channels stay in order: {reason}", kind, kind))
            continue
        log(f"order the {channels.size} channels of {name}")
        layers = [*makers, *readers]
        trials = []
        for layer, problem in zip(layers, problems(layers, dense, settings), strict=True):
            if layer.node in orders:
                problem = problem.ordered(_every_tap(orders[layer.node], layer.weight.shape[1]))
            trials.append(_Trial(layer, patterns[layer.node], problem))
        order, before, after = _order(channels, trials[: len(makers)], trials[len(makers) :])
        told = (
            f"{channels.size} channels for {', '.join(node_name(t.layer.node) for t in trials)}: "
            f"output error {100 * before:.2f} % in the given order, {100 * after:.2f} % in the one found"
        )
        if after < before:
            moves.append((channels, order))
            orders |= {r.node: order for r, inner in channels.readers if inner == 1}
        outcome = "applied" if after < before else "declined"
        findings.append(Finding(NAME, name, outcome, told, kind, kind))
    permute(model, moves)
    return findings


def _block(layer: Layer, patterns: Mapping[ir.Node, Pattern]) -> int:
    """How many rows of `layer` share their zeros; 1 where it is not pruned."""
    pattern = patterns.get(layer.node)
    return pattern.block if pattern is not None and layer.groups == 1 else 1


def _no_freedom(channels: ChannelSet, makers, readers, patterns) -> str | None:
    free = any(_block(maker, patterns) < channels.run for maker in makers)
    if readers:
        pattern = patterns[readers[0].node]
        free |= channels.run >= 2 * pattern.m and _in_groups(channels, pattern)
    if free:
        return None
    return f"they move within runs of {channels.run} only, which no block or group crosses"


def _order(
    channels: ChannelSet, makers: Sequence[_Trial], readers: Sequence[_Trial]
) -> tuple[np.ndarray, float, float]:
    """The best order, and the summed errors of all trials in the given and in that order."""

    def attempt(order: np.ndarray) -> _Attempt:
        made = [trial.pruned(rows=order) for trial in makers]
        read = [trial.pruned(inputs=order) for trial in readers]
        return _Attempt(order, sum(pruned.report.error_after for pruned in made + read), made)

    reader = None
    if readers and _in_groups(channels, readers[0].pattern):
        scores = [column_scores(t.problem, t.pattern.block, t.taps) for t in readers]
        reader = Reader(np.concatenate(scores), readers[0].pattern.n, readers[0].pattern.m)
    given = attempt(np.arange(channels.size))
    starts = [
        attempt(cluster(row_scores(t.problem)[:, t.layout.order], t.layout, channels.run)) for t in makers
    ]
    best = last = min([given, *starts], key=lambda a: a.error)
    for _ in range(TURNS if makers else 1):  # what columns are worth to readers does not change
        costs = [_costs(trial, pruned) for trial, pruned in zip(makers, last.made, strict=True)]
        now = attempt(search(last.order, channels.run, costs, reader))
        best = min(best, now, key=lambda a: a.error)
        if now.error > (1 - SETTLED) * last.error:
            break
        last = now
    return best.order, given.error, best.error


def _in_groups(channels: ChannelSet, pattern: NM) -> bool:
    """Whether no group of inputs crosses from one run to the next."""
    return channels.run == channels.size or channels.run % pattern.m == 0


def _costs(trial: _Trial, pruned: Pruned) -> Maker:
    block = trial.layout.block
    return Maker(row_costs(trial.problem, pruned.mask[::block]), block)
