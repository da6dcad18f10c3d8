"""Small edits of an onnx_ir graph that keep the names of the model's outputs."""

import numpy as np
import onnx_ir as ir


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None for whatever is computed or given."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of ``graph`` under a free name that begins with ``name``."""
    free, count = name, 0
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.tensor(array, name=free)
    value = ir.Value(name=free, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(node: ir.Node, new: list[ir.Value]) -> bool:
    """Let ``new`` take the place of the outputs of ``node`` and remove it; False if nothing changed.

    Where an output of the graph would lose its name, the name moves to the new value; where that value
    has a name to keep itself (it is an input, a weight or another output), an Identity stays behind.
    """
    graph = node.graph
    if node.op_type == "Identity" and _pinned(node.outputs[0], new[0]):
        return False
    for old, value in zip(node.outputs, new, strict=True):
        if value is None:
            continue
        if old.is_graph_output():
            final = value
            if _pinned(old, value):
                final = node_before(node, "Identity", [value]).outputs[0]
                final.type, final.shape = old.type, old.shape
            final.name, old.name = old.name, f"{old.name}_replaced"
            graph.outputs[:] = [final if output is old else output for output in graph.outputs]
        ir.convenience.replace_all_uses_with(old, value)
    graph.remove(node, safe=True)
    return True


def _pinned(old: ir.Value, new: ir.Value) -> bool:
    """Whether ``new`` cannot take over the name of the graph output ``old``."""
    if not old.is_graph_output():
        return False
    producer = new.producer()
    return producer is None or new.is_graph_output() or producer.graph is not old.producer().graph


def node_before(
    anchor: ir.Node, op_type: str, inputs, attributes=None, outputs: int = 1, domain: str = ""
) -> ir.Node:
    """A new node, by default a standard one, right before ``anchor``, named after it."""
    # Counted per graph, so that the same model always gets the same names.
    anchor.graph.meta["added"] = count = anchor.graph.meta.get("added", 0) + 1
    name = f"{anchor.name}/{op_type}_{count}"
    new = ir.node(op_type, inputs, attributes or {}, num_outputs=outputs, name=name, domain=domain)
    for index, value in enumerate(new.outputs):
        value.name = f"{name}/{index}"
    anchor.graph.insert_before(anchor, new)
    return new


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape as a tuple of sizes, or None while a size is unknown."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def integer(node: ir.Node, name: str, default: int | None) -> int | None:
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def integers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attr = node.attributes.get(name)
    return list(attr.as_ints()) if attr is not None else list(default)
