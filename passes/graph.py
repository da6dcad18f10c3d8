"""Reading and rewriting an onnx_ir graph: constants, attributes, shapes, and one node in place of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.passes.ops import DOMAIN, ensure_function

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


# ---- reading ------------------------------------------------------------------------------------------


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph and of the subgraphs in it (If, Loop, Scan), not those of functions.

    The list is taken before the first node is handed out, so the caller may rewrite as it goes; nodes
    that were removed meanwhile are left out.
    """
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.graph is not None:
            yield node


def is_op(node: ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """Whether ``node`` is one of the standard operators ``op_types`` (or of ``domain``)."""
    if node is None or node.op_type not in op_types:
        return False
    return node.domain == domain or (domain == "" and node.domain == "ai.onnx")


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes ``value`` if it is one of the standard operators ``op_types``, else None."""
    node = value.producer() if value is not None else None
    return node if is_op(node, *op_types) else None


def node_name(node: ir.Node) -> str:
    """The node's name, or for a nameless node that of its first output: what a finding calls it."""
    return node.name or (node.outputs[0].name if node.outputs else None) or f"unnamed {node.op_type}"


def const_array(value: ir.Value | None) -> np.ndarray | None:
    """The constant behind ``value`` as an array, or None when it is not known at compile time.

    Initializers and Constant nodes count, also through Identity.  An initializer that is a graph input
    too does not: whoever runs the model may replace it.
    """
    while (node := producer(value, "Identity")) is not None:
        value = node.inputs[0]
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def const_scalar(value: ir.Value | None) -> float | int | bool | None:
    """The one element of a constant of size 1 (any rank), or None."""
    array = const_array(value)
    return array.reshape(()).item() if array is not None and array.size == 1 else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute, ``default`` where the node does not carry it."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.value


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape with symbolic dims as strings (None: unnamed), or None when even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def broadcasts_into(shape: Sequence[int], value: ir.Value) -> bool:
    """Whether an operand of static ``shape`` leaves the shape of ``value`` as it is under broadcasting.

    Only what is certain counts: a dimension other than 1 must meet the same static number.
    """
    target = dims(value)
    if all(d == 1 for d in shape) and (len(shape) == 0 or (target is not None and len(shape) <= len(target))):
        return True
    if target is None or len(shape) > len(target):
        return False
    return all(d in (1, t) for d, t in zip(reversed(shape), reversed(target), strict=False))


def nodes_between(leaf: ir.Value, root: ir.Node, stop: ir.Value | None = None) -> list[ir.Node]:
    """The nodes that lead from ``leaf`` to ``root``, root included, in graph order; constants left out.

    What lies behind ``stop``, another operand of the pattern, does not count.
    """
    ancestors: set[ir.Node] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if node in ancestors:
            continue
        ancestors.add(node)
        sources = [v.producer() for v in node.inputs if v is not None and v is not leaf and v is not stop]
        pending.extend(p for p in sources if p is not None)
    between: set[ir.Node] = set()
    pending = [use.node for use in leaf.uses()]
    while pending:
        node = pending.pop()
        if node not in ancestors or node in between:
            continue
        between.add(node)
        if node is not root:
            pending.extend(use.node for v in node.outputs if v is not stop for use in v.uses())
    return [n for n in root.graph if n in between]


def depends_on(value: ir.Value | None, leaf: ir.Value) -> bool:
    """Whether ``value`` is computed from ``leaf``."""
    node = value.producer() if value is not None else None
    return node is not None and bool(nodes_between(leaf, node))


def op_list(pattern: Sequence[ir.Node]) -> str:
    """The operators of ``pattern`` as a finding shows them: "Sub, Relu"."""
    return ", ".join(n.op_type for n in pattern)


# ---- rewriting ----------------------------------------------------------------------------------------


def replace_with_op(
    model: ir.Model,
    root: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any] | None = None,
) -> ir.Node:
    """Put ``ai.sparsec.<op>`` where ``root`` stood, and drop what nothing reads any more.

    The output keeps its name, dtype and shape, also as a graph output; the node keeps name, doc string
    and metadata; the function body goes into ``model.functions`` on first use.  Values of the pattern
    that others still read stay, so this is right for shared intermediates too.
    """
    ensure_function(model, op)
    new = ir.node(
        op,
        inputs,
        attributes,
        domain=DOMAIN,
        name=root.name,
        doc_string=root.doc_string,
        metadata_props=dict(root.metadata_props),
    )
    return replace_node(root, new)


def replace_node(root: ir.Node, new: ir.Node) -> ir.Node:
    """Put ``new`` (one output) where ``root`` (one output) stood, and drop what nothing reads any more."""
    old_inputs = list(root.inputs)
    old, value = root.outputs[0], new.outputs[0]
    value.metadata_props.update(old.metadata_props)
    value.doc_string = old.doc_string
    ir.convenience.replace_nodes_and_values(root.graph, root, [root], [new], [old], [value])
    remove_dead(old_inputs)
    return new


def free_name(model: ir.Model, name: str) -> str:
    """``name``, or the first of ``name_1``, ``name_2``... that no value of the model's graphs has."""
    taken = {v.name for n in nodes(model) for v in (*n.outputs, *n.inputs) if v is not None}
    taken |= set(model.graph.initializers) | {v.name for v in model.graph.inputs}
    free, i = name, 0
    while free in taken:
        i += 1
        free = f"{name}_{i}"
    return free


def add_constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of the main graph, called :func:`free_name` of ``name``."""
    free = free_name(model, name)
    value = ir.Value(
        name=free,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=free),
    )
    model.graph.register_initializer(value)
    return value


def remove_dead(values: Iterable[ir.Value | None]) -> None:
    """Remove the nodes and initializers behind ``values`` that nothing reads and no graph returns."""
    pending = [v for v in values if v is not None]
    while pending:
        value = pending.pop()
        if value.uses() or value.is_graph_output():
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and not value.is_graph_input() and value.graph is not None:
                value.graph.initializers.pop(value.name, None)
            continue
        if node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        inputs = [v for v in node.inputs if v is not None]
        node.graph.remove(node, safe=True)
        pending.extend(inputs)
