"""Einsum of an activation and a weight is a matrix product, with its axes put in order around it.

Einsum<"bsk,kn->bsn">(x, W)      ->  MatMul(x, W)
Einsum<"abhd,hdn->abn">(x, W)    ->  MatMul(Reshape(x), W as [hd, n])
Einsum<"bchw,oc->bohw">(x, W)    ->  Transpose(MatMul(Transpose(x), W as [c, o]))
"""

import math
from string import ascii_letters

import numpy as np
import onnx_ir as ir

from sparsec.compiler.ingest import edit


def rewrite(node: ir.Node) -> None:
    """Put a MatMul where `node`, an Einsum, contracts an activation with a constant and does no more."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if len(node.inputs) != 2 or "->" not in equation:
        return
    arrays = [edit.constant(value) for value in node.inputs]
    if (arrays[0] is None) == (arrays[1] is None):
        return
    right = 0 if arrays[1] is None else 1
    x, weight, shape = node.inputs[1 - right], arrays[right], edit.static_shape(node.inputs[1 - right])
    terms, out = equation.split("->")[0].split(","), equation.split("->")[1]
    if shape is None or len(terms) != 2 or "." in terms[right]:
        return
    free = [letter for letter in ascii_letters if letter not in equation]
    dots = "".join(free[: len(shape) - len(terms[1 - right].replace("...", ""))])
    given, fixed, out = (t.replace("...", dots) for t in (terms[1 - right], terms[right], out))
    if len(given) != len(shape) or any(len(set(term)) < len(term) for term in (given, fixed, out)):
        return
    rows = [label for label in given if label in out]
    summed = [label for label in given if label not in out]
    columns = [label for label in fixed if label not in given]
    if not rows or set(fixed) != {*summed, *columns} or set(out) != {*rows, *columns}:
        return  # a label of all three, a sum over one operand, or no row at all
    size = dict(zip(given, shape, strict=True)) | dict(zip(fixed, weight.shape, strict=True))
    if any(size[label] != length for label, length in zip(given, shape, strict=True)):
        return  # an axis of length one that is broadcast
    matrix = weight.transpose([fixed.index(label) for label in (*summed, *columns)])
    matrix = matrix.reshape(math.prod(size[label] for label in summed), -1)
    lead = [size[label] for label in rows]
    x = _ordered(node, x, given, [*rows, *summed])
    x = _shaped(node, x, [*lead, len(matrix)], len(summed) != 1)
    w = edit.initializer(node.graph, f"{node.inputs[right].name}_matrix", np.ascontiguousarray(matrix))
    y = edit.node_before(node, "MatMul", [x, w]).outputs[0]
    y = _shaped(node, y, [*lead, *(size[label] for label in columns)], len(columns) != 1)
    edit.replace(node, [_ordered(node, y, [*rows, *columns], out)])


def _ordered(node: ir.Node, value: ir.Value, labels, wanted) -> ir.Value:
    perm = [labels.index(label) for label in wanted]
    if perm == sorted(perm):
        return value
    return edit.node_before(node, "Transpose", [value], {"perm": perm}).outputs[0]


def _shaped(node: ir.Node, value: ir.Value, shape: list[int], needed: bool) -> ir.Value:
    if not needed:
        return value
    sizes = edit.initializer(node.graph, f"{node.name}/shape", np.array(shape, np.int64))
    return edit.node_before(node, "Reshape", [value, sizes]).outputs[0]
