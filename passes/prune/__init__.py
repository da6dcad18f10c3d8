"""Prune a dense layer to a pattern so that its *output* stays near: masks, reconstruction, and their measure.

`prune` takes one weight and what calibration tells of its inputs. The names in `METHODS` say how the kept
weights are chosen; then least squares gives them their best values, unless that is turned off. `walk` does it
layer by layer for a whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from sparsec.passes.base import PassError
from sparsec.passes.prune import scores
from sparsec.passes.prune.awp import awp
from sparsec.passes.prune.descent import descent
from sparsec.passes.prune.dsnot import dsnot
from sparsec.passes.prune.layout import Columns, Layout, Pattern, Unstructured, parse_pattern
from sparsec.passes.prune.least_squares import refit
from sparsec.passes.prune.moments import Moments, Problem, pose
from sparsec.passes.prune.obs import greedy, sparsegpt

MAX_ELIMINATIONS = 8192
"""Columns of all blocks together up to which `search` starts from `greedy`, whose work grows with them."""


def _by(score: Callable[[Problem], np.ndarray]) -> Callable:
    def choose(problem: Problem, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        keep = layout.best(score(problem))
        return np.where(layout.spread(keep), problem.dense, 0.0), keep

    return choose


def _dsnot(problem: Problem, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    keep = dsnot(problem, layout)
    return np.where(layout.spread(keep), problem.dense, 0.0), keep


def _search(problem: Problem, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    # Where it is affordable, elimination over all columns is the better start.
    start = greedy if layout.blocks * len(layout.order) <= MAX_ELIMINATIONS else sparsegpt
    _, keep = start(problem, layout)
    return descent(problem, keep, refit(problem, keep, layout), layout)


# Name -> (problem, layout) -> (weight, keep), from the plainest on; the weight is what the method makes.
METHODS: dict[str, Callable[[Problem, Layout], tuple[np.ndarray, np.ndarray]]] = {
    "random": _by(scores.random),
    "magnitude": _by(scores.magnitude),
    "energy": _by(scores.energy),
    "wanda": _by(scores.wanda),
    "dsnot": _dsnot,
    "awp": awp,
    "sparsegpt": sparsegpt,
    "obs": greedy,
    "search": _search,
}


LASSO = "lasso"
"""How the columns of a `Columns` were chosen, before (`structure`)."""


@dataclass(frozen=True)
class Report:
    """What pruning did to one layer. Errors are squared errors of its output relative to the dense output,
    about their means: `error_before` with the dense values at the kept places, `error_after` as returned."""

    pattern: str
    method: str
    kept: float
    energy: float
    error_before: float
    error_after: float

    def to_json(self) -> dict[str, str | float]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Pruned:
    """`weight` `[rows, K]` float64, `mask` bool `[rows, K]`, True where a weight stays."""

    weight: np.ndarray
    mask: np.ndarray
    report: Report


def prune(
    problem: Problem,
    pattern: Pattern,
    method: str,
    *,
    taps: int = 1,
    reconstruct: bool = True,
) -> Pruned:
    """Choose what stays of `problem.dense` `[rows, taps * inputs]` and give it its values.

    With `reconstruct` the values are those of exact least squares on the chosen support; else the method's
    own (the dense ones for a score). Raises `PassError` for an unknown method.
    """
    if method not in METHODS:
        raise PassError(f"prune: method must be one of {', '.join(METHODS)}, found {method!r}")
    rows, columns = problem.dense.shape
    layout = Layout.of(pattern, rows, columns // taps, taps)
    ordered = problem.ordered(layout.order)
    if isinstance(pattern, Columns):
        keep = np.tile(pattern.kept, taps)[None]
        weight, method = np.where(keep, ordered.dense, 0.0), LASSO
    else:
        weight, keep = METHODS[method](ordered, layout)
    mask = layout.spread(keep)
    masked = np.where(mask, ordered.dense, 0.0)
    if reconstruct:
        weight = refit(ordered, keep, layout)
    total = float(np.square(ordered.dense).sum())
    report = Report(
        pattern=str(pattern),
        method=method,
        kept=float(mask.mean()),
        energy=float(np.square(masked).sum()) / total if total else 1.0,
        error_before=ordered.error(masked),
        error_after=ordered.error(weight),
    )
    return Pruned(layout.restore(weight), layout.restore(mask), report)


__all__ = [
    "METHODS",
    "Columns",
    "Layout",
    "Moments",
    "Pattern",
    "Problem",
    "Pruned",
    "Report",
    "Unstructured",
    "parse_pattern",
    "pose",
    "prune",
]
