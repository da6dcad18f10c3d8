"""Choose a form for every layer so that the whole model keeps its budget.

Along the frontier forms are put in for real and judged on held-out samples: by ONNX Runtime until the fastest
choice is found that keeps the budget of errors, in the end by the compiled model, whose time counts, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sparsec.compiler.allocation.budget import Budget
from sparsec.compiler.errors import CompileError
from sparsec.compiler.mixed import told
from sparsec.compiler.mixed.survey import Candidate, Survey, counted
from sparsec.compiler.mixed.trial import Trial
from sparsec.compiler.request import CompileRequest
from sparsec.passes.findings import Finding
from sparsec.passes.prune.allocate import knee

TRIES = 5
"""Compilations at the end of a search, each twice as far along the frontier as the one before."""
JUMPS = 2
"""Compilations more, of points that the error measured so far lets hope for."""
WORTH = 0.98
"""Of the mixed model's time, that one precision throughout must take to be the better choice."""


@dataclass(frozen=True, eq=False)
class Allocated:
    """What was chosen, with a finding for each layer, and the plan as JSON."""

    trial: Trial
    findings: list[Finding]
    plan: dict


def allocate(model: ir.Model, request: CompileRequest, log: Callable[[str], None]) -> Allocated:
    """A form for each layer of `model`, which has fixed shapes and stays as it is.

    Without a budget the choice is where errors begin to grow fast.  Raises CompileError where no choice keeps
    the budget, naming the closest one."""
    known = Survey(model, request, log)
    best = search(known, Budget(request.max_error, request.max_drop, request.target_latency))
    return Allocated(best.trial, told.findings(known, best), told.plan(known, best))


def search(known: Survey, budget: Budget) -> Candidate:
    points = known.space.points
    within = (
        i for i, p in enumerate(points) if budget.latency is None or known.space.latency(p) <= budget.latency
    )
    fits = list(within) or [len(points) - 1]  # none is predicted to be in time: the fastest has to show
    if budget.judged:
        mixed = _fastest(known, fits, budget)
    elif budget.latency is not None:
        mixed = _first_in_time(known, fits, budget.latency)
    else:
        return known.candidate(known.at(points.index(knee(points))))
    whole = [*known.uniform.values(), known.plain]

    def kept(candidates: Sequence[Candidate]) -> list[Candidate]:
        return [c for c in candidates if c.judgement.keeps(budget) and _in_time(known, c, budget.latency)]

    able = kept(mixed), kept(whole)
    if not any(able):
        near = min([*mixed, *whole], key=lambda candidate: _excess(known, candidate, budget))
        raise CompileError(
            f"no choice of forms keeps the budget: the nearest, {counted(near.chosen)}, takes "
            f"{share(known, near):.2f} of the time in float32, {near.judgement}; nothing was written"
        )
    if not budget.judged:
        return min(able[0] + able[1], key=lambda candidate: candidate.judgement.error)
    first, other = (min(group, key=lambda c: c.seconds, default=None) for group in able)
    if first is None or other is None:
        return first or other
    return other if other.seconds <= WORTH * first.seconds else first


def share(known: Survey, candidate: Candidate) -> float:
    """Of the model's time in float32."""
    return candidate.seconds / known.plain.seconds


def _fastest(known: Survey, fits: Sequence[int], budget: Budget) -> list[Candidate]:
    """The last of the points `fits` that keeps the budget of errors: halving finds it by ONNX Runtime, the
    compiled model confirms it or sends the search back; where that leaves much of the budget, ahead as far as
    it may last. What was compiled."""
    low, high = 0, len(fits) - 1
    while low <= high:
        middle = (low + high) // 2
        chosen = known.at(fits[middle])
        if not chosen or known.judged(chosen).keeps(budget):
            low = middle + 1
        else:
            high = middle - 1
    made: list[Candidate] = []
    at = max(low - 1, 0)
    while len(made) < TRIES:
        made.append(known.candidate(known.at(fits[at])))
        if at == 0 or made[-1].judgement.keeps(budget):
            break
        at = max(0, at - 2 ** (len(made) - 1))
    best = at
    for _ in range(JUMPS):
        jump = _reach(known, fits, at, made[-1], budget)
        if jump is None or jump <= best:
            break
        at = jump
        made.append(known.candidate(known.at(fits[at])))
        best = at if made[-1].judgement.keeps(budget) else best
    return made


def _reach(known: Survey, fits: Sequence[int], at: int, found: Candidate, budget: Budget) -> int | None:
    """The last of the points `fits` whose error keeps the budget if it changes from what was `found` at `at`
    as the predicted one does; None where that cannot be told."""
    points, limit = known.space.points, budget.error
    if not limit or not found.judgement.error or not points[fits[at]].error:
        return None
    most = points[fits[at]].error * (limit / found.judgement.error) ** 2
    return max((i for i in range(len(fits)) if points[fits[i]].error <= most), default=None)


def _first_in_time(known: Survey, fits: Sequence[int], latency: float) -> list[Candidate]:
    """The first of the points `fits`, with the least error, that takes no more when it is compiled, or the
    last. What was compiled."""
    made: list[Candidate] = []
    at = 0
    while len(made) < TRIES:
        made.append(known.candidate(known.at(fits[at])))
        if at == len(fits) - 1 or _in_time(known, made[-1], latency):
            break
        at = min(at + 2 ** (len(made) - 1), len(fits) - 1)
    return made


def _in_time(known: Survey, candidate: Candidate, latency: float | None) -> bool:
    return latency is None or share(known, candidate) <= latency


def _excess(known: Survey, candidate: Candidate, budget: Budget) -> float:
    """By how much the limit is passed that is passed most."""
    found = candidate.judgement
    pairs = (
        (share(known, candidate), budget.latency),
        (found.error, budget.error),
        (found.drop, budget.drop),
    )
    return max(have / limit if limit else have for have, limit in pairs if limit is not None)
