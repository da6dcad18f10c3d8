"""The search on made-up numbers: what comes out under which budget, and what is said where none fits."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from sparsec.compiler.allocation.budget import Budget, Judgement
from sparsec.compiler.allocation.search import Space
from sparsec.compiler.errors import CompileError
from sparsec.compiler.mixed import told
from sparsec.compiler.mixed.allocate import search
from sparsec.compiler.mixed.forms import PLAIN, Form, Unit
from sparsec.compiler.mixed.survey import Candidate, Survey
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune.allocate import Option, frontier

FORMS = [PLAIN, *(Form(p, pattern) for p in ("bf16", "int8") for pattern in (None, NM(2, 4, 32)))]
SECONDS = dict(zip(FORMS, (1.0, 0.5, 0.25, 0.25, 0.125), strict=True))
ERRORS = dict(zip(FORMS, (0.0, 1e-6, 1e-2, 1e-4, 1e-2), strict=True))
LAYERS, REST = 6, 2.0


class Made(Survey):
    """A survey that measures nothing: what is compiled takes and errs as predicted, times factors."""

    def __init__(self, slower=1.0, worse=lambda error: 1.0, precisions=("bf16", "int8")):
        self.slower, self.worse = slower, worse
        weight = {f"layer{i}": 2.0**i for i in range(LAYERS)}
        self.forms = {name: list(FORMS) for name in weight}
        self.seconds = {name: dict(SECONDS) for name in weight}
        self.errors = {name: {form: e * weight[name] for form, e in ERRORS.items()} for name in weight}
        self.refused, self.compiled = {"other": "it is in a subgraph"}, []
        self.plain = self.candidate({})
        self.uniform = {p: self.candidate({name: Form(p) for name in weight}) for p in precisions}
        choices = {
            name: [
                (Option(str(f), SECONDS[f], self.errors[name][f]), None if f == PLAIN else {name: f}, 0.0)
                for f in FORMS
            ]
            for name in weight
        }
        self.space = Space(choices, self.plain.seconds, 1)

    def judged(self, chosen):
        return Judgement(sum(self.errors[name][form] for name, form in chosen.items()) ** 0.5, 1.0, None)

    def candidate(self, chosen):
        self.compiled.append(chosen)
        whole = [{}, *(dict.fromkeys(self.forms, Form(p)) for p in ("bf16", "int8"))]
        mixed = chosen not in whole
        seconds = REST + sum(SECONDS[chosen.get(name, PLAIN)] for name in self.forms)
        found = self.judged(chosen)
        found = Judgement(found.error * (self.worse(found.error) if mixed else 1.0), found.cosine, None)
        return Candidate(chosen, SimpleNamespace(findings=[]), seconds * (self.slower if mixed else 1), found)


def found(known, **budget):
    best = search(known, Budget(**budget))
    return best, best.seconds / known.plain.seconds


def unit(*names):
    read = SimpleNamespace(shape=(1, 10 * len(names)))
    nodes = [SimpleNamespace(name=name, inputs=[read]) for name in names]
    return Unit(names[0], tuple(SimpleNamespace(node=node) for node in nodes))


@pytest.fixture
def measured():
    """Three units, one of two layers, with seconds and errors at random, and borders that cost."""
    known, rng = Made(precisions=()), np.random.default_rng(5)
    known.units = [unit("layer0", "layer1"), unit("layer2"), unit("layer3")]
    names = [name for each in known.units for name in each.names]
    known.forms = dict.fromkeys(names, FORMS)
    known.seconds = {n: dict(zip(FORMS, [1, *rng.uniform(0.1, 0.9, 4)], strict=True)) for n in names}
    known.errors = {n: dict(zip(FORMS, [0, *rng.uniform(0, 1, 4)], strict=True)) for n in names}
    known.plain = Candidate({}, None, REST + 4, None)
    for precision, border in (("bf16", -0.1), ("int8", 0.4)):
        chosen = dict.fromkeys(names, Form(precision))
        seconds = REST + sum(known.seconds[name][form] for name, form in chosen.items()) + border
        known.uniform[precision] = Candidate(chosen, None, seconds, None)
    known.space = Space(known._options(), known.plain.seconds, 1)
    return known


def test_the_frontier_is_that_of_all_choices(measured):
    """Dynamic programming against every combination of patterns and precisions."""
    options = [[option for option, _, _ in choices] for choices in measured._options().values()]
    every = [(sum(o.cost for o in c), sum(o.error for o in c)) for c in product(*options)]
    assert len(every) == 5**3
    for point in frontier(options):
        assert point.error == pytest.approx(min(e for cost, e in every if cost <= point.cost + 1e-9))
    errors = sorted(error for _, error in every)
    for limit in errors[::10]:
        best = min(cost for cost, error in every if error <= limit)
        assert min(p.cost for p in frontier(options) if p.error <= limit + 1e-9) <= best + 0.005


def test_one_precision_throughout_is_predicted_as_it_was_measured(measured):
    """The borders are what kernels do not explain, spread by what is read."""
    for precision, candidate in measured.uniform.items():
        index = FORMS.index(Form(precision))
        cost = sum(choices[index][0].cost for choices in measured._options().values())
        assert REST + cost == pytest.approx(candidate.seconds)
    costs = {
        name: choices[FORMS.index(Form("int8"))][0].cost for name, choices in measured._options().items()
    }
    alone = sum(measured.seconds[name][Form("int8")] for name in ("layer0", "layer1"))
    assert costs["layer0"] == pytest.approx(alone + 0.4 * 20 / 40)


def test_nothing_is_chosen_under_a_budget_of_zero():
    best, share = found(Made(), error=0.0)
    assert best.chosen == {} and share == 1


def test_looser_budgets_are_faster():
    known = Made()
    budgets = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    results = [found(known, error=error) for error in budgets]
    shares = [share for _, share in results]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) > 5
    assert all(best.judgement.error <= budget for (best, _), budget in zip(results, budgets, strict=True))
    assert set(results[-1][0].chosen.values()) == {Form("int8", NM(2, 4, 32))}
    sensitive = results[4][0].chosen.get("layer5", PLAIN), results[4][0].chosen["layer0"]
    assert SECONDS[sensitive[0]] > SECONDS[sensitive[1]], "the layer that matters least goes first"


@pytest.mark.parametrize(("budget", "form"), [(1e-2, "bf16"), (1e-1, "int8")])
def test_one_precision_throughout_where_mixing_costs(budget, form):
    best, _ = found(Made(slower=3.0), error=budget)
    assert set(best.chosen.values()) == {Form(form)} and len(best.chosen) == LAYERS


def test_the_compiled_model_sends_the_search_back():
    known = Made(worse=lambda error: 2.0, precisions=())
    best, _ = found(known, error=0.05)
    assert 0 < best.judgement.error <= 0.05
    assert known.compiled[1:] and known.candidate(known.compiled[1]).judgement.error > 0.05


def test_what_is_left_of_the_budget_is_used():
    """ONNX Runtime judged a makeshift four times as far off as the compiled model is."""
    known = Made(worse=lambda error: 0.25, precisions=())
    best, _ = found(known, error=0.017)
    assert 0.01 < best.judgement.error <= 0.017 < known.judged(best.chosen).error


def test_a_jump_too_far_is_followed_by_one_back():
    known = Made(worse=lambda error: 0.25 if error < 0.03 else 0.4, precisions=())
    best, _ = found(known, error=0.017)
    first, far, back = (known.candidate(c).judgement.error for c in known.compiled[1:4])
    assert first < 0.005 and far > 0.017 and best.judgement.error == pytest.approx(back)
    assert first < back <= 0.017


def test_a_latency_is_reached_with_the_least_error():
    best, share = found(Made(), latency=0.6)
    assert share <= 0.6 and best.judgement.error < found(Made(), latency=0.4)[0].judgement.error
    slow, share = found(Made(slower=1.2), latency=0.6)
    assert share <= 0.6 and slow.judgement.error > best.judgement.error, "it is the measured one that counts"


def test_both_budgets():
    best, share = found(Made(), latency=0.7, error=0.05)
    assert share <= 0.7 and best.judgement.error <= 0.05


def test_without_a_budget_it_stops_at_the_knee():
    best, share = found(Made())
    assert share < 0.8 and best.judgement.error < 0.13


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"latency": 0.1}, r"the nearest, 6 layers 2:4x32 int8, takes 0\.34 of the time in float32"),
        ({"latency": 0.4, "error": 1e-4}, r"keeps the budget: the nearest, .*; nothing was written"),
    ],
)
def test_impossible_budgets(budget, said):
    with pytest.raises(CompileError, match=said):
        found(Made(), **budget)


def test_every_layer_is_told():
    known = Made()
    best, _ = found(known, error=3e-2)
    findings = {finding.node: finding for finding in told.findings(known, best)}
    assert set(findings) == {*known.forms, "other"}
    for name, finding in findings.items():
        assert finding.after == str(best.chosen.get(name, PLAIN))
        assert finding.applied == (name in best.chosen)
    assert findings["other"].reason == "it is in a subgraph"
    stays = findings["layer5"] if "layer5" not in best.chosen else findings["layer0"]
    assert "of the time in float32, for" in stays.reason or "would save" in stays.reason
    shares = [float(f.reason.split(" for ")[1].split(" %")[0]) for f in findings.values() if f.applied]
    assert sum(shares) == pytest.approx(100, abs=1)
    plan = told.plan(known, best)
    assert [layer["node"] for layer in plan["layers"]] == list(known.forms)
    assert plan["held_out"]["error"] <= 3e-2 and set(plan["uniform"]) == {"bf16", "int8"}
