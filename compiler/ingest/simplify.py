"""Nodes that do nothing, given static shapes, are removed.

Identity(x), Dropout(x), Cast to its own type, Reshape / Expand / Flatten / Squeeze ... to its own shape,
Transpose that keeps the order, Concat of one, Pad by nothing, Slice of everything  ->  x
"""

import numpy as np
import onnx_ir as ir

from sparsec.compiler.ingest import edit

# With the same shape before and after, these only hand their first input on.
_SHAPE_ONLY = {"Expand", "Flatten", "Reshape", "Squeeze", "Tile", "Unsqueeze"}


def simplify(graph: ir.Graph) -> None:
    for node in list(graph):
        if not node.domain and node.inputs and node.inputs[0] is not None and _does_nothing(node):
            new = [node.inputs[0]] + [None] * (len(node.outputs) - 1)
            edit.replace(node, new)


def _does_nothing(node: ir.Node) -> bool:
    given, result = node.inputs[0], node.outputs[0]
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False
    before, after = edit.static_shape(given), edit.static_shape(result)
    same = before is not None and before == after
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            training = edit.constant(node.inputs[2]) if len(node.inputs) > 2 else None
            return (
                len(node.inputs) < 3
                or node.inputs[2] is None
                or (training is not None and not training.any())
            )
        case "Cast":
            return given.dtype is not None and int(given.dtype) == edit.integer(node, "to", 0)
        case "CastLike":
            return given.dtype is not None and given.dtype == node.inputs[1].dtype
        case "Transpose":
            attr = node.attributes.get("perm")
            if attr is None:
                return before is not None and len(before) < 2
            perm = list(attr.as_ints())
            # Moving axes of size 1 only would be a Reshape, which is another rule's business.
            return perm == sorted(perm)
        case "Concat" | "Sum" | "Max" | "Min" | "Mean":
            return len(node.inputs) == 1
        case "Pad":
            pads = edit.constant(node.inputs[1]) if len(node.inputs) > 1 else None
            return pads is not None and not pads.any()
        case "Slice":
            steps = edit.constant(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
            return same and steps is not None and bool((steps == 1).all())
        case op if op in _SHAPE_ONLY:
            return same
    return False
