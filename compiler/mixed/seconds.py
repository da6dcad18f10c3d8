"""Seconds of every layer in every form: its kernels at that precision, dense and sparse, timed alone."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from sparsec import passes
from sparsec.compiler.allocation.times import complete, masked, ratio, stored, sums
from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.mixed.forms import FLOAT32, Form, Forms
from sparsec.compiler.precision import wanted
from sparsec.compiler.to_relax import linear
from sparsec.compiler.to_relax.products import is_product, products
from sparsec.compiler.tuning.database import Database
from sparsec.compiler.tuning.measure import context
from sparsec.schedules import elements
from sparsec.schedules.contraction import packed_for
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.target import LEVELS


def form_seconds(
    model: ir.Model, forms: Forms, level: str, log: Callable[[str], None]
) -> tuple[dict[str, dict[Form, float]], dict[str, str]]:
    """``{node: {form: seconds}}`` on ``level``, without the forms that have no kernel there, and why a layer
    has none in bfloat16.  ``model`` has fixed shapes and stays as it is.

    Times come from the tuning database, or are measured and put there.
    """
    lowered = model.clone()
    passes.run_pipeline(lowered, ())
    channels_last(lowered)
    nodes = {node.name: node for node in lowered.graph if is_product(node)}
    permute, known = LEVELS[level].permute, Database().read(context(level))
    found: dict[str, dict[Form, float]] = {}
    refused: dict[str, str] = {}
    for number, (name, own) in enumerate(forms.items(), 1):
        if name not in nodes:
            continue  # it folds away before it is run
        made = {}
        for form in own:
            parts, reason = _products(nodes[name], form.precision, level)
            if reason:
                refused[name] = reason
            else:
                made[form] = [(packed_for(_with(s, form), permute), _weight(s, w, form)) for s, w in parts]
        weights = dict(product for parts in made.values() for product in parts)
        complete(known, weights, level, partial(log, f"time the kernels of layer {number} of {len(forms)}"))
        found[name] = _seconds({form: [known[to_text(s)] for s, _ in made[form]] for form in made})
    return found, refused


def _seconds(rows: dict[Form, list[dict[str, float]]]) -> dict[Form, float]:
    """Of each form; a pattern is at most as slow as the precision's dense kernel, which is then taken."""
    found: dict[Form, float] = {}
    for form, parts in rows.items():
        if form.pattern is None:
            found[form] = sum(min(row.values()) for row in parts)
        else:
            found[form] = found[Form(form.precision)] * ratio(form.pattern, sums(parts))
    return found


def _products(node: ir.Node, precision: str, level: str) -> tuple[Sequence[tuple], str]:
    """The products of a layer at ``precision``, or why there are none."""
    if precision == FLOAT32:
        return products(node), ""
    if precision == "bf16":
        if not linear.is_layer(node):
            return (), "its kernel has no form in bfloat16"
        marked, reason = wanted(node, (level,))
        if marked == elements.FLOAT32.name:
            return (), reason
        node.metadata_props[linear.PRECISION] = marked
        try:
            return products(node), ""
        finally:
            del node.metadata_props[linear.PRECISION]
    if "Conv" in node.op_type:
        return [linear.conv_layer(node, elements.INT8.name)], ""
    spec, weight = linear.layer(node)
    return [(dataclasses.replace(spec, precision=elements.INT8.name), weight)], ""


def _with(spec, form: Form):
    return dataclasses.replace(spec, pattern=stored(form.pattern)) if form.pattern else spec


def _weight(spec, weight: np.ndarray, form: Form) -> np.ndarray:
    """``weight`` with zeros as the form has them, of int8 as integers."""
    weight = masked(weight, form.pattern) if form.pattern else weight
    if getattr(spec, "precision", None) != elements.INT8.name:
        return weight
    return np.rint(weight * (127 / (np.abs(weight).max() or 1.0)))
