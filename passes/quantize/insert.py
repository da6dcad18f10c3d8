"""Put 8-bit arithmetic into a model: choose the layers, walk them, report each, and take some back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from sparsec.passes.findings import Finding
from sparsec.passes.graph import add_constant, node_name, nodes, remove_dead, replace_node
from sparsec.passes.nm_choice import Choice
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.nm_pattern import NM
from sparsec.passes.ops import DOMAIN
from sparsec.passes.prune import Pattern
from sparsec.passes.prune.places import cannot
from sparsec.passes.prune.walk import Observe
from sparsec.passes.quantize.walk import Outcome, Settings, walk

NAME = "quantize"
STAYS = "float32"


def quantise(
    model: ir.Model,
    pattern: Pattern | Callable[[Layer], Pattern | None] | None,
    dense: Observe,
    quantised: Observe,
    settings: Settings,
    choice: Choice,
    log: Callable[[str], None] = lambda line: None,
    *,
    floats: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Outcome], dict[str, str]]:
    """Quantise `model` in place; the layers that were, and by name why the others were not.

    `floats` are layers that stay float32, by name, and why. `pattern` may be a function of the layer.
    Raises PassError for a glob of `choice` that matches nothing, and where calibration data are not finite.
    """
    as_standard(model)
    candidates = list(find_layers(model))
    choice.check([node_name(layer.node) for layer in candidates])
    wanted: list[tuple[Layer, Pattern | None]] = []
    reasons: dict[str, str] = {}
    for layer in candidates:
        asked = pattern(layer) if callable(pattern) else pattern
        here = asked.within(layer.weight.shape[0] // layer.groups) if isinstance(asked, NM) else asked
        reason = floats.get(node_name(layer.node)) or why_not(layer, model, choice)
        if reason is None:
            unfit = here is not None and choice.why_not(layer, here if isinstance(here, NM) else None)
            wanted.append((layer, None if unfit else here))
        else:
            reasons[node_name(layer.node)] = reason
    outcomes, refused = walk(model, wanted, dense, quantised, settings, log)
    return outcomes, reasons | {node_name(node): reason for node, reason in refused.items()}


def why_not(layer: Layer, model: ir.Model, choice: Choice) -> str | None:
    """Why `layer` stays in float32, or None."""
    named = Choice(choice.layers, choice.skip, 0)
    if (reason := named.why_not(layer, None) or cannot(layer)) is not None:
        return reason
    if layer.standard == "ConvTranspose":
        return "no integer kernel computes ConvTranspose"
    if layer.node.graph is not model.graph:
        return "it is in a subgraph, whose values calibration cannot see"
    others = [use.node for use in layer.value.uses() if use.node is not layer.node]
    if others:
        return f"{node_name(others[0])} reads its weight, too; give each its own"
    return None


def as_standard(model: ir.Model) -> None:
    """N:M operators back to the standard ones: their patterns are found again in the quantised weights."""
    for node in nodes(model):
        if node.domain == DOMAIN and node.op_type.startswith("NM"):
            kept = {k: a for k, a in node.attributes.items() if k not in ("n", "m", "block", "scattered")}
            inputs = list(node.inputs)
            replace_node(node, ir.node(node.op_type.removeprefix("NM"), inputs, kept, name=node.name))


def findings(outcomes: Sequence[Outcome], reasons: dict[str, str], backs: dict[str, str]) -> list[Finding]:
    """One for each layer: those that were quantised and stayed so, those taken back for the reasons `backs`,
    and those that could not be."""
    made = []
    for outcome in outcomes:
        name, op = outcome.report["node"], outcome.layer.standard
        if name in backs:
            made.append(Finding(NAME, name, "declined", backs[name], op, op))
        else:
            made.append(Finding(NAME, name, "applied", _reason(outcome.report), op, f"{op} in int8"))
    return made + [Finding(NAME, name, "declined", why, STAYS, STAYS) for name, why in reasons.items()]


def _reason(report: dict) -> str:
    pattern = "" if report["pattern"] == "dense" else f"{report['pattern']}, "
    return (
        f"{pattern}input in [{report['low']:.3g}, {report['high']:.3g}] by {report['range']}, migration "
        f"{report['migration']}: output error {100 * report['error_before']:.3f} % with its weights rounded "
        f"to the nearest, {100 * report['error_after']:.3f} % as fitted"
    )


def by_input(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Those that read one quantised value: they go back together."""
    groups: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(id(outcome.input), []).append(outcome)
    return list(groups.values())


def revert(model: ir.Model, outcomes: Sequence[Outcome]) -> None:
    """Give the layers of `outcomes` their float weights back, in the quantised model or in a clone of it.

    They read the same migrated input as before, not on its grid.
    """
    by_name = {node_name(node): node for node in model.graph}
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    for outcome in outcomes:
        layer, place = outcome.layer, outcome.place
        node, name = by_name[node_name(layer.node)], layer.value.name
        old = list(node.inputs)
        node.replace_input_with(0, values[outcome.input.value.name])
        node.replace_input_with(1, add_constant(model, f"{name}_float", layer.stored(place.layer.weight)))
        if place.free_bias:
            reader, index = node, 2
            if layer.standard == "MatMul":
                reader = next(iter(node.outputs[0].uses())).node
                index = next(i for i, value in enumerate(reader.inputs) if value is not node.outputs[0])
                old.append(reader.inputs[index])
            bias = place.bias.astype(layer.array.dtype)
            reader.replace_input_with(index, add_constant(model, f"{name}_bias_float", bias))
        remove_dead(old)
