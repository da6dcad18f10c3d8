"""Control flow that static shapes make superfluous.

``If`` with a constant condition becomes its branch; ``Loop`` and ``Scan`` whose trip count is a constant
become copies of their body, as long as the copies stay below ``MAX_NODES`` nodes.  What cannot be
resolved stays, and ``support`` reports it.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from sparsec.compiler.ingest import edit

MAX_NODES = 4000  # a bigger unrolled loop costs more in compile time than it is worth


def resolve(model: ir.Model) -> None:
    """Resolve what can be resolved in the main graph; nested control flow surfaces in the next round."""
    rules = {"If": _if, "Loop": _loop, "Scan": _scan}
    changed = False
    for node in list(model.graph):
        if not node.domain and node.op_type in rules:
            changed |= rules[node.op_type](node)
    if changed:
        NameFixPass()(model)


def _if(node: ir.Node) -> bool:
    condition = edit.constant(node.inputs[0])
    if condition is None or condition.size != 1:
        return False
    branch = node.attributes["then_branch" if condition.item() else "else_branch"].as_graph()
    return edit.replace(node, _splice(node, branch, [], "branch"))


def _loop(node: ir.Node) -> bool:
    trips, go = edit.constant(node.inputs[0]), node.inputs[1] if len(node.inputs) > 1 else None
    start = edit.constant(go)
    body = node.attributes["body"].as_graph()
    if go is not None and start is None:
        return False
    if start is not None and not start.item():
        count = 0
    elif trips is not None and _goes_on(body.outputs[0], body.inputs[1]):
        count = int(trips.item())
    else:
        return False
    state = list(node.inputs[2:])
    scans: list[list[ir.Value]] = [[] for _ in node.outputs[len(state) :]]
    if count * len(body) > MAX_NODES or (count < 1 and scans):
        return False
    graph = node.graph
    true = edit.initializer(graph, f"{node.name}_condition", np.array(True))
    for index in range(max(count, 0)):
        number = edit.initializer(graph, f"{node.name}_iteration_{index}", np.array(index, np.int64))
        results = _splice(node, body, [number, true, *state], str(index))[1:]
        state = results[: len(state)]
        for rows, value in zip(scans, results[len(state) :], strict=True):
            rows.append(value)
    return edit.replace(node, state + [_stack(node, rows, 0) for rows in scans])


def _goes_on(value: ir.Value, given: ir.Value) -> bool:
    """Whether the loop's condition is true for ever: a constant, or what came in, passed along."""
    while (producer := value.producer()) is not None and producer.op_type in ("Identity", "Cast"):
        value = producer.inputs[0]
    if value is given:
        return True
    array = edit.constant(value)
    return array is not None and array.size == 1 and bool(array.item())


def _scan(node: ir.Node) -> bool:
    body = node.attributes["body"].as_graph()
    scanned = edit.integer(node, "num_scan_inputs", 1)
    carried = len(node.inputs) - scanned
    produced = len(node.outputs) - carried

    def listed(name: str, count: int) -> list[int]:
        attr = node.attributes.get(name)
        return list(attr.as_ints()) if attr is not None else [0] * count

    axes, backwards = listed("scan_input_axes", scanned), listed("scan_input_directions", scanned)
    out_axes, out_backwards = listed("scan_output_axes", produced), listed("scan_output_directions", produced)
    sequences = node.inputs[carried:]
    sizes = {
        s[axis] if (s := edit.static_shape(v)) else None for v, axis in zip(sequences, axes, strict=True)
    }
    if len(sizes) != 1 or None in sizes:
        return False
    (count,) = sizes
    if not 1 <= count * max(len(body), 1) <= MAX_NODES:
        return False
    state, rows = list(node.inputs[:carried]), [[] for _ in range(produced)]
    for index in range(count):
        slices = []
        for value, axis, back in zip(sequences, axes, backwards, strict=True):
            at = edit.initializer(
                node.graph, f"{node.name}_at", np.array(count - 1 - index if back else index, np.int64)
            )
            slices.append(edit.node_before(node, "Gather", [value, at], {"axis": axis}).outputs[0])
        results = _splice(node, body, [*state, *slices], str(index))
        state = results[:carried]
        for row, value in zip(rows, results[carried:], strict=True):
            row.append(value)
    stacked = [
        _stack(node, row[::-1] if back else row, axis)
        for row, axis, back in zip(rows, out_axes, out_backwards, strict=True)
    ]
    return edit.replace(node, state + stacked)


def _stack(node: ir.Node, rows: list[ir.Value], axis: int) -> ir.Value:
    axes = edit.initializer(node.graph, f"{node.name}_axes", np.array([axis], np.int64))
    rows = [edit.node_before(node, "Unsqueeze", [row, axes]).outputs[0] for row in rows]
    return edit.node_before(node, "Concat", rows, {"axis": axis}).outputs[0]


def _splice(node: ir.Node, body: ir.Graph, arguments: list[ir.Value], tag: str) -> list[ir.Value]:
    """Copy ``body`` before ``node`` with its inputs bound to ``arguments``; the copies of its outputs."""
    copy = body.clone(allow_outer_scope_values=True)
    bound = dict(zip(copy.inputs, arguments, strict=True))
    results = [bound.get(value, value) for value in copy.outputs]
    weights = list(copy.initializers.values())
    copy.outputs.clear()
    for old, new in bound.items():
        ir.convenience.replace_all_uses_with(old, new)
    moved = list(copy)
    copy.remove(moved)
    for value in weights:
        copy.initializers.pop(value.name)
        value.name = f"{node.name}/{tag}/{value.name}"
        node.graph.register_initializer(value)
    for inner in moved:
        inner.name = f"{node.name}/{tag}/{inner.name}"
        for value in inner.outputs:
            if value.name:
                value.name = f"{node.name}/{tag}/{value.name}"
    node.graph.insert_before(node, moved)
    return results
