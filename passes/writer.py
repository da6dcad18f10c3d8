"""New nodes in front of one that is there, each with the dtype and shape that later stages rely on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import node_name
from sparsec.passes.ops import ensure_function


class Writer:
    """Writes in front of ``anchor``; names come from its own and are counted over the graph."""

    def __init__(self, model: ir.Model, anchor: ir.Node):
        self.model, self.anchor = model, anchor

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType,
        shape,
        attributes: dict | None = None,
        *,
        domain: str = "",
        name: str | None = None,
    ) -> ir.Value:
        """The output of a new node; ``shape`` is a sequence, or a shape to share."""
        if domain:
            ensure_function(self.model, op_type)
        name = name or self._name(op_type)
        shape = None if shape is None else ir.Shape(list(shape))
        out = ir.Value(name=f"{name}/result", type=ir.TensorType(dtype), shape=shape)
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, outputs=[out], name=name)
        self.anchor.graph.insert_before(self.anchor, node)
        return out

    def constant(self, array, what: str) -> ir.Value:
        """A new initializer."""
        array = np.asarray(array, order="C")
        name = self._name(what)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.anchor.graph.register_initializer(value)
        return value

    def _name(self, what: str) -> str:
        meta = self.anchor.graph.meta
        meta["sparsec.written"] = count = meta.get("sparsec.written", 0) + 1
        return f"{node_name(self.anchor)}/{what}~{count}"


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` be read wherever ``old`` is, also as an output of the graph, whose name it takes."""
    if old.is_graph_output():
        graph = old.producer().graph
        graph.outputs[:] = [new if output is old else output for output in graph.outputs]
        new.name, old.name = old.name, f"{old.name}~replaced"
        new.metadata_props.update(old.metadata_props)
    for node, index in list(old.uses()):
        node.replace_input_with(index, new)
