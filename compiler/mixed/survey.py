"""What is measured of one model before and while forms are chosen for its layers.

Errors and seconds of layers add up, as in `allocation`.  What it costs to go from one precision to another is
not a layer's own: the whole model in one precision says how much that is, and every layer takes its share by
what it reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from sparsec.compiler.allocation.budget import (
    Judgement,
    Outputs,
    judge,
    metric_for,
    outputs,
    split,
)
from sparsec.compiler.allocation.search import Space
from sparsec.compiler.errors import CompileError
from sparsec.compiler.mixed.errors import form_errors
from sparsec.compiler.mixed.forms import FLOAT32, PLAIN, Form, Unit, find_units
from sparsec.compiler.mixed.seconds import form_seconds
from sparsec.compiler.mixed.trial import Trial, compiled, make, taken_back
from sparsec.compiler.prune import mask_input
from sparsec.compiler.request import CompileRequest, cpu_levels, native_level, runnable
from sparsec.passes.nm_choice import Choice
from sparsec.passes.prune import parse_pattern
from sparsec.passes.prune.allocate import Option
from sparsec.passes.prune.walk import Settings as Pruning
from sparsec.passes.quantize import RANGES, Settings

METHOD, ROUNDING = "search", "descent"
Chosen = Mapping[str, Form]
"""Node -> form, of the layers that do not stay as they were given."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A choice that was compiled: `seconds` of the model, and how far its outputs are on held-out data."""

    chosen: Chosen
    trial: Trial
    seconds: float
    judgement: Judgement


class Survey:
    """`units`, the `forms` of their layers, `seconds` and `errors` of those; why other layers have none is
    `refused`. `plain` is the model as it was given and `uniform` that with every layer that can in one
    precision, both compiled; `space` has the frontier. A choice is made real once, however often."""

    def __init__(self, model: ir.Model, request: CompileRequest, log: Callable[[str], None]):
        self.model, self.request, self.log = model, request, log
        levels = runnable(cpu_levels(request.target, request.precision))
        if not levels:
            raise CompileError(
                f"a choice of precisions is measured, and this machine cannot run '{request.target}'; "
                "compile with one --precision and without a budget"
            )
        self.target = "native" if levels[0] == native_level(request.precision) else request.target
        self.seen, self.unseen = split(request.calib, model)
        self.metric = metric_for(request.metric, request.calib, self.unseen)
        if request.max_drop is not None and self.metric is None:
            raise CompileError(
                f"--max-drop needs --metric FILE.py:NAME or an array `labels` in '{request.calib}'; "
                "there is none"
            )
        mask = mask_input(model, "")
        self.pruning = Pruning(METHOD, mask=mask)
        self.quantising = Settings(tuple(RANGES), ROUNDING, mask=mask)
        self._trials: dict[frozenset, Trial] = {}
        self._candidates: dict[frozenset, Candidate] = {}
        log("time the model in float32")
        self.wanted: Outputs | None = None  # until the model in float32 has said it
        self.plain = self.candidate({})
        self._layers(levels[0])
        precisions = {p: self._throughout(Form(p)) for p in request.precision.split(",")}
        self.uniform = {p: self.candidate(chosen) for p, chosen in precisions.items() if chosen}
        if not self.uniform and not request.patterns:
            some = "; ".join(f"{name}: {why}" for name, why in list(self.refused.items())[:3])
            asked = " or ".join(precisions)
            raise CompileError(
                f"no layer of the model can take {asked}: {some or 'it has no constant weights'}"
            )
        self.space = Space(self._options(), self.plain.seconds, 1)

    def _layers(self, level: str) -> None:
        request = self.request
        patterns = [parse_pattern(text) for text in request.patterns]
        units, forms, self.refused = find_units(self.model, request.precision.split(","), patterns, Choice())
        self.seconds, no_kernel = form_seconds(self.model, forms, level, self.log)
        self.errors = form_errors(
            self.model, units, forms, self.seen, self.pruning, self.quantising, self.log
        )
        self.forms = {
            name: [form for form in forms[name] if form in self.errors[name] and form in timed]
            for name, timed in self.seconds.items()
        }
        self.units = [unit for unit in units if all(name in self.forms for name in unit.names)]
        self.refused |= no_kernel

    # What the frontier is made of ---------------------------------------------------------------------

    def _throughout(self, form: Form) -> Chosen:
        return {name: form for name, own in self.forms.items() if form in own}

    def _options(self) -> dict[str, list[tuple[Option, Chosen | None, float]]]:
        """Of each unit: what its forms make of its layers, their seconds with a share of the borders' and
        their errors."""
        borders = {FLOAT32: 0.0} | {p: self._borders(candidate) for p, candidate in self.uniform.items()}
        found = {}
        for unit in self.units:
            found[unit.name] = []
            for form, members in unit.choices(self.forms):
                seconds = sum(self.seconds[name][own] for name, own in members.items())
                seconds += borders[form.precision] * _reads(unit)
                error = sum(self.errors[name][own] for name, own in members.items())
                chosen = None if form == PLAIN else members
                found[unit.name].append((Option(str(form), max(seconds, 0.0), error), chosen, 0.0))
        return found

    def _borders(self, candidate: Candidate) -> float:
        """Seconds for each value read in one precision, beyond those of kernels: less than nothing where
        smaller activations save more than making them costs."""
        chosen = candidate.chosen
        kernels = sum(self.seconds[name][form] - self.seconds[name][PLAIN] for name, form in chosen.items())
        read = sum(_reads(unit) for unit in self.units if any(name in chosen for name in unit.names))
        return (candidate.seconds - self.plain.seconds - kernels) / max(read, 1)

    def at(self, index: int) -> Chosen:
        """What is chosen at a point of the frontier."""
        members = self.space.chosen(self.space.points[index]).values()
        return {name: form for own in members for name, form in own.items() if form != PLAIN}

    # For real -----------------------------------------------------------------------------------------

    def trial(self, chosen: Chosen) -> Trial:
        key = frozenset(chosen.items())
        if key not in self._trials:
            made = make(self.model, chosen, self.seen, self.pruning, self.quantising, self.log)
            self._trials[key] = made
        return self._trials[key]

    def judged(self, chosen: Chosen) -> Judgement:
        """How far ONNX Runtime finds the outputs of `chosen` on held-out data; without patterns the integers
        are those of the model that has no other layers."""
        if Form("int8") in chosen.values() and not any(form.pattern for form in chosen.values()):
            trial = taken_back(self.uniform["int8"].trial, chosen)
        else:
            trial = self.trial(chosen)
        model = ir.from_proto(onnx.load_from_string(trial.meant))
        judgement = self._judge(outputs(model, self.unseen))
        self.log(f"{counted(chosen)}: on held-out data {judgement}")
        return judgement

    def _judge(self, found: Outputs) -> Judgement:
        name = self.pruning.mask
        mask = np.concatenate([feed[name] for feed in self.unseen]) if name else None
        return judge(self.wanted, found, self.metric, mask)

    def candidate(self, chosen: Chosen) -> Candidate:
        key = frozenset(chosen.items())
        if key not in self._candidates:
            trial = self.trial(chosen)
            seconds, found = compiled(trial, self.target, self.request.sparsity, self.unseen)
            self.wanted = self.wanted or found
            judgement = self._judge(found)
            self._candidates[key] = Candidate(chosen, trial, seconds, judgement)
            self.log(f"{counted(chosen)}: {1e3 * seconds:.3g} ms, {judgement}")
        return self._candidates[key]


def counted(chosen: Chosen) -> str:
    """``3 layers int8, 1 layer 2:4x32 bf16``"""
    counts: dict[str, int] = {}
    for form in chosen.values():
        counts[str(form)] = counts.get(str(form), 0) + 1
    parts = [f"{count} layer{'s' if count > 1 else ''} {form}" for form, count in counts.items()]
    return ", ".join(parts) or "all float32"


def _reads(unit: Unit) -> int:
    """Values of the unit's input."""
    return prod(int(d) for d in unit.layers[0].node.inputs[0].shape)
