"""What is said of an allocation: a finding for each layer, and the plan."""

from collections.abc import Sequence

from sparsec.compiler.allocation.budget import Judgement
from sparsec.compiler.mixed.forms import PLAIN, Form
from sparsec.compiler.mixed.survey import Candidate, Survey
from sparsec.passes.findings import Finding

NAME = "allocate"


def findings(known: Survey, best: Candidate) -> list[Finding]:
    """Those of pruning and quantising, then why each layer has its form."""
    made, total = list(best.trial.findings), _error(known, best)
    for name, own in known.forms.items():
        form, seconds = best.chosen.get(name, PLAIN), known.seconds[name]
        outcome, reason = "declined", _why_not(known, best, name, own)
        if form != PLAIN:
            outcome = "applied"
            reason = (
                f"{seconds[form] / seconds[PLAIN]:.2f} of the time in float32, for "
                f"{100 * known.errors[name][form] / (total or 1.0):.1f} % of the predicted squared error"
            )
        made.append(Finding(NAME, name, outcome, reason, str(PLAIN), str(form)))
    told = {finding.node for finding in made}
    return made + [
        Finding(NAME, name, "declined", reason, str(PLAIN), str(PLAIN))
        for name, reason in known.refused.items()
        if name not in told
    ]


def _why_not(known: Survey, best: Candidate, name: str, own: Sequence[Form]) -> str:
    """Why a layer stays in float32."""
    seconds, errors = known.seconds[name], known.errors[name]
    fastest = min(own, key=lambda form: seconds[form])
    if fastest == PLAIN:
        return known.refused.get(name, "no other form is faster here")
    gain = (seconds[PLAIN] - seconds[fastest]) / known.plain.seconds
    return (
        f"{fastest} would save {100 * gain:.1f} % of the model's time and change the outputs by "
        f"{errors[fastest] ** 0.5:.1e} beside the {_error(known, best) ** 0.5:.1e} that is predicted"
    )


def _error(known: Survey, best: Candidate) -> float:
    """The squared change of the outputs that is predicted."""
    return sum(known.errors[name][form] for name, form in best.chosen.items())


def plan(known: Survey, best: Candidate) -> dict:
    """Seconds in ms; `error` is what a layer's form alone changes the outputs by, predicted, relative."""
    layers = []
    for name in known.forms:
        form = best.chosen.get(name, PLAIN)
        layers.append(
            {
                "node": name,
                "precision": form.precision,
                "pattern": str(form.pattern) if form.pattern else "dense",
                "ms": 1e3 * known.seconds[name][form],
                "float32_ms": 1e3 * known.seconds[name][PLAIN],
                "error": known.errors[name][form] ** 0.5,
            }
        )
    return {
        "layers": layers,
        "float32_ms": 1e3 * known.plain.seconds,
        "measured_ms": 1e3 * best.seconds,
        "predicted_error": _error(known, best) ** 0.5,
        "held_out": _facts(best.judgement),
        "uniform": {p: {"ms": 1e3 * c.seconds} | _facts(c.judgement) for p, c in known.uniform.items()},
        "frontier": [
            {"latency": known.space.latency(p), "predicted_error": p.error**0.5} for p in known.space.points
        ],
    }


def _facts(judgement: Judgement) -> dict:
    return {"error": judgement.error, "cosine": judgement.cosine, "drop": judgement.drop}
