"""Give a pruned layer a low-rank term that takes back what it can of the error: `x W + (x R) L`.

With `G = C C^T`, what the sparse weight leaves is `||(T - W) C||_F^2`, so the best term of rank r is the
truncated singular value decomposition of `E = (T - W) C` (Eckart & Young):

    E = U S V^T,   L R = U_r S_r V_r^T C^-1

and given the term, the best sparse weight is the one for the target `T - L R`. Both are taken in turn, so no
turn raises the error. The term follows the walk, layer by layer on what the pruned model then gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import add_constant, free_name, node_name
from sparsec.passes.nm_layers import Layer
from sparsec.passes.prune.least_squares import on_support
from sparsec.passes.prune.moments import Problem
from sparsec.passes.prune.walk import Clock, Observe, Settings, by_group, observe, put, stages

TURNS = 4


def fit_term(
    problem: Problem, mask: np.ndarray, rank: int, turns: int = TURNS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(weight [N, K], left [N, r], right [r, K])`: the weight is zero where `mask` `[N, K]` is False."""
    lower = np.linalg.cholesky(problem.gram)
    low = np.zeros_like(problem.target)
    for _ in range(turns):
        weight = on_support(replace(problem, target=problem.target - low), mask)
        u, s, vt = np.linalg.svd((problem.target - weight) @ lower, full_matrices=False)
        left, right = u[:, :rank] * s[:rank], np.linalg.solve(lower.T, vt[:rank].T).T
        low = left @ right
    return weight, left, right


def cannot_have(layer: Layer, rank: int) -> str | None:
    """Why `layer` gets no term, or None."""
    out, _, inputs = layer.weight.shape
    if layer.convolves:
        return "a convolution has none"
    if 2 * rank * (out + inputs) > out * inputs:
        return f"rank {rank} is no low one for [{inputs}, {out}]"
    return None


def add_terms(
    model: ir.Model,
    layers: Sequence[Layer],
    rank: int,
    dense: Observe,
    pruned: Observe,
    settings: Settings,
    log: Callable[[str], None] = lambda line: None,
) -> dict[ir.Node, tuple[ir.Value, float]]:
    """Refit `layers`, their zeros as they are, with a term beside each, in place; for the node of each the
    weight that it reads now and the error of its output."""

    def solve(problem: Problem, taps: int) -> tuple[np.ndarray, tuple]:
        weight, left, right = fit_term(problem, problem.dense != 0, rank)
        whole = weight + left @ right
        return whole, (weight, left, right, problem.error(whole))

    clock = Clock(layers, log)
    found = {}
    for shared, places in stages(model, layers):
        moments = observe(places, dense, pruned, settings.mask)
        for key, same in shared.items():
            of_key = [place for place in places if place.layer.key == key]
            whole, bias, ((weight, left, right, error),) = by_group(of_key, moments[key], settings, solve)
            value = put(model, same, of_key, weight.reshape(whole.shape), bias)
            name = same[0].value.name
            factors = [
                add_constant(model, f"{name}_{kind}", np.ascontiguousarray(factor.T, same[0].array.dtype))
                for kind, factor in (("right", right), ("left", left))
            ]
            for layer in same:
                _put_beside(model, layer.node, factors)
                found[layer.node] = (value, error)
            clock.done(same[0], [error])
    return found


def _put_beside(model: ir.Model, node: ir.Node, factors: Sequence[ir.Value]) -> None:
    """Add the product of the input of `node` with `factors` to its output."""
    out, graph = node.outputs[0], node.graph
    inner = ir.node("MatMul", [node.inputs[0], factors[0]], name=f"{node_name(node)}_right")
    outer = ir.node("MatMul", [inner.outputs[0], factors[1]], name=f"{node_name(node)}_left")
    total = ir.node("Add", [out, outer.outputs[0]], name=f"{node_name(node)}_sum")
    for new in (inner, outer, total):
        value = new.outputs[0]
        value.name, value.dtype = free_name(model, f"{new.name}_output"), out.dtype
        value.shape = ir.Shape([*out.shape[:-1], factors[0].shape[1]]) if new is inner else out.shape
    uses = [use for use in out.uses() if use.node is not total]
    graph.insert_after(node, [inner, outer, total])
    for use in uses:
        use.node.replace_input_with(use.idx, total.outputs[0])
    if out.is_graph_output():
        outputs = graph.outputs
        outputs[list(outputs).index(out)] = total.outputs[0]
        name, out.name = out.name, free_name(model, f"{out.name}_sparse")
        total.outputs[0].name = name
