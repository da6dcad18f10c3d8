"""Sequences that only carry tensors from one place to another are followed and dropped.

torch writes ``chunk`` and ``split`` as SplitToSequence + SequenceAt and ``stack`` as SequenceConstruct +
ConcatFromSequence.  Where lengths and positions are constants, the tensors can be wired directly.
"""

import math

import numpy as np
import onnx_ir as ir

from sparsec.compiler.ingest import edit


def resolve(graph: ir.Graph) -> None:
    """Replace reads from sequences of known content; the writers die as unused nodes."""
    content: dict[ir.Value, list[ir.Value]] = {}
    for node in list(graph):
        if node.domain:
            continue
        known = content.get(node.inputs[0]) if node.inputs else None
        match node.op_type:
            case "SequenceEmpty":
                content[node.outputs[0]] = []
            case "SequenceConstruct":
                content[node.outputs[0]] = list(node.inputs)
            case "SplitToSequence":
                if (parts := _split(node)) is not None:
                    content[node.outputs[0]] = parts
            case "SequenceInsert" if known is not None:
                at = _position(node, 2, len(known), len(known))
                if at is not None:
                    content[node.outputs[0]] = [*known[:at], node.inputs[1], *known[at:]]
            case "SequenceErase" if known is not None:
                at = _position(node, 1, len(known), len(known) - 1)
                if at is not None and at < len(known):
                    content[node.outputs[0]] = known[:at] + known[at + 1 :]
            case "Identity" if known is not None:
                content[node.outputs[0]] = known
            case "SequenceLength" if known is not None:
                array = np.array(len(known), np.int64)
                edit.replace(node, [edit.initializer(graph, f"{node.name}_length", array)])
            case "SequenceAt" if known is not None:
                at = _position(node, 1, len(known), None)
                if at is not None and at < len(known):
                    edit.replace(node, [known[at]])
            case "ConcatFromSequence" if known:
                edit.replace(node, [_concat(node, known)])


def _position(node: ir.Node, index: int, length: int, default: int | None) -> int | None:
    """The constant position in input ``index`` counted from the front, None if it is not a constant."""
    if index >= len(node.inputs) or node.inputs[index] is None:
        return default
    array = edit.constant(node.inputs[index])
    if array is None or array.size != 1:
        return None
    at = int(array.item())
    at = at + length if at < 0 else at
    return at if at >= 0 else None


def _split(node: ir.Node) -> list[ir.Value] | None:
    shape, axis = edit.static_shape(node.inputs[0]), edit.integer(node, "axis", 0)
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    length, single = shape[axis], len(node.inputs) < 2 or node.inputs[1] is None
    if single:
        sizes = [1] * length
    else:
        split = edit.constant(node.inputs[1])
        if split is None or (split.ndim == 0 and split.item() < 1):
            return None
        step = int(split.item()) if split.ndim == 0 else 0
        sizes = (
            [min(step, length - i * step) for i in range(math.ceil(length / step))]
            if step
            else split.tolist()
        )
    lengths = edit.initializer(node.graph, f"{node.name}_sizes", np.array(sizes, np.int64))
    parts = list(
        edit.node_before(node, "Split", [node.inputs[0], lengths], {"axis": axis}, len(sizes)).outputs
    )
    if single and not edit.integer(node, "keepdims", 1):
        axes = edit.initializer(node.graph, f"{node.name}_axes", np.array([axis], np.int64))
        parts = [edit.node_before(node, "Squeeze", [part, axes]).outputs[0] for part in parts]
    return parts


def _concat(node: ir.Node, parts: list[ir.Value]) -> ir.Value:
    axis = edit.integer(node, "axis", 0)
    if edit.integer(node, "new_axis", 0):
        axes = edit.initializer(node.graph, f"{node.name}_axes", np.array([axis], np.int64))
        parts = [edit.node_before(node, "Unsqueeze", [part, axes]).outputs[0] for part in parts]
    return edit.node_before(node, "Concat", parts, {"axis": axis}).outputs[0]
