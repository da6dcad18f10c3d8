"""What a layer may become: a pattern for its weight and a precision for its products."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sparsec.passes.graph import node_name
from sparsec.passes.nm_choice import Choice
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune import Pattern
from sparsec.passes.prune.places import cannot
from sparsec.passes.quantize.insert import why_not

FLOAT32 = "fp32"
EVERY = Choice(min_size=0)


@dataclass(frozen=True)
class Form:
    """`precision`: fp32, bf16 or int8; `pattern`: None for the weight as it was given."""

    precision: str = FLOAT32
    pattern: Pattern | None = None

    def __str__(self) -> str:
        return f"{self.pattern} {self.precision}" if self.pattern else self.precision


PLAIN = Form()
Forms = Mapping[str, Sequence[Form]]
"""Node -> what it may become, `PLAIN` first."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Layers that read one value, which is rounded once for all of them: they have one form together."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def names(self) -> list[str]:
        return [node_name(layer.node) for layer in self.layers]

    def members(self, form: Form, forms: Forms) -> dict[str, Form]:
        """What each layer becomes with `form` chosen for the unit, as near to it as the layer can."""
        nearest = (form, Form(form.precision), Form(pattern=form.pattern), PLAIN)
        return {name: next(f for f in nearest if f in forms[name]) for name in self.names}

    def choices(self, forms: Forms) -> Iterator[tuple[Form, dict[str, Form]]]:
        """The forms of the unit that differ in what they make of a layer, each with that; `PLAIN` first."""
        seen = []
        for form in dict.fromkeys(form for name in self.names for form in forms[name]):
            if (members := self.members(form, forms)) not in seen:
                seen.append(members)
                yield form, members


def find_units(
    model: ir.Model, precisions: Sequence[str], patterns: Sequence[Pattern], choice: Choice
) -> tuple[list[Unit], dict[str, list[Form]], dict[str, str]]:
    """The units in the order of data, the forms of their layers, and why other layers have none.

    That a level has no kernel for a form is not known here.  `choice` says which layers can be pruned.
    """
    candidates = list(find_layers(model))
    reads: dict[ir.Value, list[Layer]] = {}
    forms: dict[str, list[Form]] = {}
    refused: dict[str, str] = {}
    for layer in candidates:
        name = node_name(layer.node)
        reason = cannot(layer)
        if reason is None and layer.node.graph is not model.graph:
            reason = "it is in a subgraph, whose values calibration cannot see"
        if reason is not None:
            refused[name] = reason
            continue
        unfit = why_not(layer, model, EVERY)
        able = [FLOAT32, *(p for p in precisions if p != "int8" or unfit is None)]
        own = [None] if unfit else [None, *_patterns(layer, patterns, choice)]
        forms[name] = [Form(precision, pattern) for precision in able for pattern in own]
        reads.setdefault(layer.node.inputs[0], []).append(layer)
    return [Unit(value.name, tuple(layers)) for value, layers in reads.items()], forms, refused


def _patterns(layer: Layer, patterns: Sequence[Pattern], choice: Choice) -> list[Pattern]:
    rows = layer.weight.shape[0] // layer.groups
    own = dict.fromkeys(p.within(rows) if isinstance(p, NM) else p for p in patterns)
    return [p for p in own if choice.why_not(layer, p if isinstance(p, NM) else None) is None]
