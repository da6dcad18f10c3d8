"""Constant folding: everything that depends on weights alone is computed once, by ONNX Runtime.

The constant part of the graph becomes one small model whose outputs are the values where it ends, so
folding is exact in the sense that matters: the numbers are the ones ONNX Runtime would have computed.
"""

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from sparsec.compiler.ingest import edit, quantised
from sparsec.compiler.ingest.light import BIG

MAX_NEW = 1 << 20  # bytes that a constant may always have
MAX_GROWTH = 4  # or as a multiple of what it is made from: int8 weights become float32

_RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def shapes(graph: ir.Graph) -> None:
    """Shape and Size of values whose shape is known become constants, wherever the value comes from."""
    for node in list(graph):
        if node.domain or node.op_type not in ("Shape", "Size"):
            continue
        sizes = edit.static_shape(node.inputs[0])
        if sizes is None:
            continue
        if node.op_type == "Size":
            array = np.array(math.prod(sizes), np.int64)
        else:
            array = np.array(
                sizes[edit.integer(node, "start", 0) : edit.integer(node, "end", None)], np.int64
            )
        edit.replace(node, [edit.initializer(graph, node.outputs[0].name + "_value", array)])


def constants(model: ir.Model, failed: set[str], integers: bool = False) -> None:
    """Replace what depends on constants alone; ``failed`` collects nodes that ONNX Runtime cannot run.

    With ``integers``, those that quantised values meet stay integers, see ``quantised.meets_integers``.
    """
    graph = model.graph
    nodes = _constant_nodes(graph, failed, integers)
    if not nodes:
        return
    try:
        _fold(model, nodes)
    except Exception:  # one node that the runtime refuses must not keep the others from being folded
        for node in nodes:
            try:
                if all(value is None or value.const_value is not None for value in node.inputs):
                    _fold(model, [node])
            except Exception:
                failed.add(node.name)


def _constant_nodes(graph: ir.Graph, failed: set[str], integers: bool) -> list[ir.Node]:
    known = {value for value in graph.initializers.values() if not value.is_graph_input()}
    known = {value for value in known if value.dtype != ir.DataType.STRING}
    sizes = {value: value.const_value.nbytes for value in known}
    found = []
    for node in graph:
        if node.domain or node.op_type in _RANDOM or node.name in failed:
            continue
        if node.op_type == "Identity" and node.outputs[0].is_graph_output():
            continue
        if integers and quantised.meets_integers(node):
            continue
        needed = [value for value in node.inputs if value is not None] + _captured(node)
        if any(value not in known for value in needed):
            continue
        made_from = sum(sizes[value] for value in needed)
        new = [_nbytes(value) for value in node.outputs]
        # Where inference could not tell the size, only small inputs are trusted.
        if any(size is None for size in new) and made_from > MAX_NEW:
            continue
        if any(size is not None and size > max(MAX_NEW, MAX_GROWTH * made_from) for size in new):
            continue
        for value, size in zip(node.outputs, new, strict=True):
            known.add(value)
            sizes[value] = size or 0
        found.append(node)
    return found


def _captured(node: ir.Node) -> list[ir.Value]:
    """Values of the outer graph that the bodies of an If, Loop or Scan read."""
    outer = []
    for attr in node.attributes.values():
        if attr.is_ref():
            continue
        graphs = {
            ir.AttributeType.GRAPH: lambda a: [a.as_graph()],
            ir.AttributeType.GRAPHS: lambda a: a.as_graphs(),
        }
        for graph in graphs.get(attr.type, lambda a: [])(attr):
            for inner in graph.all_nodes():
                outer += [v for v in inner.inputs if v is not None and v.graph is node.graph]
            outer += [v for v in graph.outputs if v.graph is node.graph]
    return outer


def _nbytes(value: ir.Value) -> int | None:
    sizes = edit.static_shape(value)
    if sizes is None or not value.dtype or value.dtype == ir.DataType.STRING:
        return None
    return math.ceil(math.prod(sizes) * value.dtype.bitwidth / 8)


def _fold(model: ir.Model, nodes: list[ir.Node]) -> None:
    inside = set(nodes)
    frontier = [
        value
        for node in nodes
        for value in node.outputs
        if value.name and (value.is_graph_output() or any(use.node not in inside for use in value.uses()))
    ]
    # A node inside the body of a Loop is no member of the list, so its captured values are frontier too.
    arrays = dict(zip(frontier, _run(model, nodes, frontier), strict=True))
    for node in nodes:
        new = []
        for value in node.outputs:
            array = arrays.get(value)
            if value in arrays and not isinstance(array, np.ndarray):
                break  # a sequence: it has no constant form, its users may still be resolved
            new.append(None if array is None else _initializer(model.graph, value, array))
        else:
            if any(
                v.uses() or v.is_graph_output() for v, n in zip(node.outputs, new, strict=True) if n is None
            ):
                continue
            edit.replace(node, new)


def _initializer(graph: ir.Graph, old: ir.Value, array: np.ndarray) -> ir.Value:
    return edit.initializer(graph, (old.name if not old.is_graph_output() else old.name + "_value"), array)


def _run(model: ir.Model, nodes: list[ir.Node], outputs: list[ir.Value]) -> list:
    """The values of ``outputs``, computed from the initializers that ``nodes`` read."""
    used: dict[str, ir.Value] = {}
    for node in nodes:
        for value in [*node.inputs, *_captured(node)]:
            if value is not None and value.const_value is not None:
                used[value.name] = value
    feeds, inputs, tensors = {}, [], []
    for name, value in used.items():
        tensor = value.const_value
        if tensor.nbytes > BIG and tensor.dtype.name in _FEEDABLE:
            feeds[name] = tensor.numpy()
            inputs.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), list(tensor.shape)))
        else:
            proto = ir.serde.serialize_tensor(tensor)
            proto.name = name
            tensors.append(proto)
    results = []
    for value in outputs:
        info = onnx.ValueInfoProto()
        info.name = value.name
        results.append(info)
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes], "constants", inputs, results, tensors
    )
    imports = [onnx.helper.make_opsetid("", model.graph.opset_imports.get("", 20))]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run([value.name for value in outputs], feeds)


_FEEDABLE = {
    "FLOAT",
    "DOUBLE",
    "FLOAT16",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "BOOL",
}
