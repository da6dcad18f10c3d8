"""One plan for the CPU levels that share their packed weights; the weights of all plans in one table.

A level packs a layer otherwise than another one only where the schedules want it, see ``packed_for``; most
models have one packing for all levels, whatever their architectures.
"""

import gc
from collections.abc import Mapping, Set
from dataclasses import dataclass

import onnx_ir as ir
import tvm

from sparsec.compiler.dump import Dump
from sparsec.compiler.lower import lower
from sparsec.compiler.plan import Plan, Port
from sparsec.compiler.planner import Weights, make_plan
from sparsec.compiler.to_relax import Importer
from sparsec.compiler.to_relax.products import products
from sparsec.schedules.contraction import packed_for
from sparsec.schedules.target import LEVELS


@dataclass(frozen=True)
class Packing:
    """What ``levels`` have in common: the plan, and the kernels that are still to be scheduled for each."""

    levels: tuple[str, ...]
    plan: Plan
    kernels: tvm.IRModule


def groups(model: ir.Model, kernels: Mapping[str, str], levels: tuple[str, ...]) -> list[tuple[str, ...]]:
    """``levels``, those together that take the same weights for the sparse ``kernels`` of ``model``."""
    parts = [tuple(v for v in levels if LEVELS[v].permute == kind) for kind in (True, False)]
    parts = [part for part in parts if part]
    sparse = [node for node in model.graph if kernels.get(node.name) == "sparse"] if len(parts) > 1 else []
    if not any(packed_for(spec, False) != spec for node in sparse for spec, _ in products(node)):
        return [levels]
    return parts


def import_model(
    model: ir.Model,
    kernels: Mapping[str, str],
    levels: tuple[str, ...],
    narrow: Set[ir.Value] = frozenset(),
) -> dict:
    """``{levels: importer that has run}`` for each packing; the first one's ``layers`` describe the model."""
    made = {
        part: Importer(model, kernels, permute=LEVELS[part[0]].permute, narrow=narrow)
        for part in groups(model, kernels, levels)
    }
    return {part: (importer.run(), importer.labels, importer.layers) for part, importer in made.items()}


def make_packings(
    imported: dict,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    states: Mapping[str, str],
    dump: Dump,
    weights: Weights,
) -> list[Packing]:
    """The packings of what ``import_model`` returned, which is emptied: nothing is held twice.

    Their weights are added to ``weights``.
    """
    made = []
    while imported:
        levels = next(iter(imported))
        relax_module, labels, _ = imported.pop(levels)
        dump.text("relax", relax_module)
        lowered = lower(relax_module)
        dump.text("lowered", lowered)
        plan, kernels = make_plan(lowered, inputs, outputs, labels, states, weights)
        dump.text("plan", "\n".join(map(str, plan.steps)))
        made.append(Packing(levels, plan, kernels))
        del relax_module, lowered
        gc.collect()  # graphs are full of cycles
    return made
