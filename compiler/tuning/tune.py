"""Tune a model: time every candidate of its layers on this machine, and put the times into the database."""

import math
from collections.abc import Callable

import onnx_ir as ir

from sparsec import passes
from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import ingest
from sparsec.compiler.precision import judged
from sparsec.compiler.request import CompileRequest, cpu_levels, runnable
from sparsec.compiler.to_relax.linear import pattern_text
from sparsec.compiler.to_relax.products import products
from sparsec.compiler.tuning.candidates import with_tiles
from sparsec.compiler.tuning.database import Database
from sparsec.compiler.tuning.measure import context, measure
from sparsec.schedules.contraction import packed_for
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.target import LEVELS


def tune(
    request: CompileRequest, database: Database, *, again: bool = False, log: Callable[[str], None]
) -> list[dict]:
    """Measures what the database does not have; one record per CPU level and structure.

    A record has ``level``, ``layers`` (the nodes), ``op``, ``shape``, ``pattern``, ``times`` (seconds by
    candidate) and ``new``.  Every structure is written as soon as it is measured, so an interrupted run
    loses one.  Raises CompileError where this machine runs no level of the target.
    """
    if not runnable(cpu_levels(request.target)):
        raise CompileError(
            f"target '{request.target}' does not run on this machine; tune on one where it does"
        )
    log("read the model")
    model = ingest(request.model, request.shapes, request.dims, log=log)
    passes.run_pipeline(model, passes.parse_pipeline(request.pipeline))
    channels_last(model)
    levels = runnable(cpu_levels(request.target, judged(model, request.precision)))
    layers = _structures(model)
    records = []
    for level in levels:
        here = context(level)
        known = {} if again else database.read(here)
        for number, (layer, (weight, nodes)) in enumerate(layers.items(), 1):
            spec = packed_for(layer, LEVELS[level].permute)
            candidates = with_tiles(spec, LEVELS[level])
            if len(candidates) < 2:
                continue
            structure = to_text(spec)
            times, new = known.get(structure, {}), False
            if not {str(c) for c in candidates} <= times.keys():
                log(f"{level}: structure {number} of {len(layers)}, {len(candidates)} candidates")
                measured = measure({spec: weight}, {spec: candidates}, level)
                database.add(here, measured)
                times, new = measured[structure], True
            records.append({**_described(spec, nodes), "level": level, "times": times, "new": new})
    return records


def _structures(model: ir.Model) -> dict:
    """``{spec: (weight of the first, all nodes)}`` of the layers with constant weights."""
    found: dict = {}
    for node in model.graph:
        for spec, weight in products(node):
            _, nodes = found.setdefault(spec, (weight, []))
            if node not in nodes:
                nodes.append(node)
    return found


def _described(spec, nodes: list[ir.Node]) -> dict:
    shape = f"{math.prod(spec.x_shape[:-1])}x{spec.x_shape[-1]} -> {spec.y_shape[-1]}"
    return {
        "layers": [node.name for node in nodes],
        "op": type(spec).__name__,
        "shape": shape,
        "pattern": pattern_text(nodes[0]),
    }
