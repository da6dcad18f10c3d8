"""entmax's ``k=``: a threshold of the k largest, and of all where the support fills k, put in by ScatterND.

What a tracer records depends on the example it saw; only a graph that recomputes by a full sort is the
normaliser itself.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from sparsec.passes.graph import attribute, is_op, nodes_between, producer
from sparsec.passes.sparsemax_forms import Miss, Stage, scalar, through

ONE_SLICE = "recomputes exactly one slice, as in the example traced; the graph fails for any other number"


def stage_of(z: ir.Value, tau: ir.Value, tau_stage: Callable, name: str) -> Stage | None:
    """The stage whose threshold ``tau`` is, where ``tau_stage(value, shapes)`` knows those of one sort."""
    scatter = producer(tau, "ScatterND")
    if scatter is None:
        return None
    first = tau_stage(scatter.inputs[0], {})
    if first is None:
        return None
    if first.z is not z:
        raise Miss("tau is computed from another tensor than it is subtracted from")
    if first.axis != -1:
        raise Miss(
            f"a partial sort along axis {first.axis}; recomputation is understood along the last axis only"
        )
    updates = scatter.inputs[2]
    cut = producer(updates, "Slice")  # the exporter takes the first len(indices) of len(indices) updates
    if cut is not None and scalar(cut.inputs[1]) == 0:
        updates = cut.inputs[0]
    second_tau = through(updates, "Reshape", "Squeeze")
    picked = _picked(second_tau, z)
    exactly = (
        picked is not None
        and _is_full(picked.inputs[1], first)
        and _is_full(scatter.inputs[1], first)
        and attribute(picked, "batch_dims", 0) == 0
        and attribute(scatter, "reduction", "none") == "none"
    )
    if not exactly:
        raise Miss("recomputes, but not exactly the slices whose support fills k")
    # The number of picked slices is known only at run time; what does not depend on it is proved for two.
    rows = picked.outputs[0]
    top = _topk_over(second_tau, rows)
    for count in (2, 3):
        shapes = {rows: (count, first.n)}
        if top is not None:
            k = scalar(top.inputs[1], shapes)
            shapes[top.outputs[0]] = (count, int(k) if k is not None else first.n)
        if producer(second_tau, "ScatterND"):
            raise Miss("recomputes more than once; only a second, full sort is understood")
        second = tau_stage(second_tau, shapes)
        if second is None or second.z is not rows or second.axis != -1:
            raise Miss(f"recomputes, but not {name} of the picked slices")
        if second.k < second.n:
            raise Miss(
                f"sorts the {first.k} and then the {second.k} largest of {first.n}, which is not {name}"
                f" for a slice with a support of more than {second.k}"
            )
    notes = first.notes | second.notes
    return Stage(z, first.rank, -1, first.n, first.n, first.sorted, first.shape, first.size, notes)


def _picked(tau: ir.Value | None, z: ir.Value) -> ir.Node | None:
    """The GatherND on ``z`` that ``tau`` is computed from."""
    node = tau.producer() if tau is not None else None
    for inner in nodes_between(z, node) if node is not None else ():
        if is_op(inner, "GatherND") and inner.inputs[0] is z:
            return inner
    return None


def _topk_over(tau: ir.Value, rows: ir.Value) -> ir.Node | None:
    for inner in nodes_between(rows, tau.producer()):
        if is_op(inner, "TopK") and inner.inputs[0] is rows:
            return inner
    return None


def _is_full(indices: ir.Value | None, first: Stage) -> bool:
    """Whether ``indices`` are those of the slices whose support fills k: Transpose(NonZero(size == k))."""
    transpose = producer(indices, "Transpose")
    nonzero = producer(transpose.inputs[0], "NonZero") if transpose is not None else None
    if nonzero is None or tuple(attribute(transpose, "perm", (1, 0))) != (1, 0):
        return False
    mask = nonzero.inputs[0]
    while (step := producer(mask, "Squeeze", "Unsqueeze")) is not None:
        if scalar(step.inputs[1]) not in (-1, first.rank - 1):  # only the last axis, which has length 1
            return False
        mask = step.inputs[0]
    equal = producer(mask, "Equal")
    if equal is None:
        return False
    a, b = equal.inputs
    return (a is first.size and scalar(b) == first.k) or (b is first.size and scalar(a) == first.k)
