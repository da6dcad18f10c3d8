"""ONNX Runtime's own operators, which its optimiser writes, in terms of standard ones.

TVM's importer ignores the domain of an operator, so none of these may reach it.  Formulas: ONNX Runtime,
``docs/ContribOperators.md``.
"""

import numpy as np
import onnx_ir as ir

from sparsec.compiler.ingest import edit, quantised

DOMAIN = "com.microsoft"


def expand(model: ir.Model) -> list[str]:
    """Replace what ``TABLE`` and ``quantised.STANDARD`` have in the main graph; the operators replaced."""
    replaced = set()
    tables = {DOMAIN: TABLE, "": quantised.STANDARD}
    for node in list(model.graph):
        rewrite = tables.get(node.domain, {}).get(node.op_type)
        if rewrite is not None:
            before = set(model.graph)
            new = rewrite(node)
            if new is None:  # what was begun goes again, support names the node
                for added in reversed([n for n in model.graph if n not in before]):
                    model.graph.remove(added, safe=True)
                continue
            count = len(node.outputs)
            edit.replace(node, (new + [None] * count)[:count])
            replaced.add(node.op_type)
    return sorted(replaced)


def _op(node: ir.Node, op_type: str, *inputs, **attributes) -> ir.Value:
    return edit.node_before(node, op_type, inputs, attributes).outputs[0]


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _scalar(node: ir.Node, name: str, value: float, like: ir.Value) -> ir.Value:
    dtype = like.dtype.numpy() if like.dtype else np.float32
    return edit.initializer(node.graph, f"{node.name}/{name}", np.array(value, dtype))


def _float(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _used(node: ir.Node, index: int) -> bool:
    return index < len(node.outputs) and bool(
        node.outputs[index].uses() or node.outputs[index].is_graph_output()
    )


def _gelu(node):
    return [_op(node, "Gelu", node.inputs[0])]


def _bias_gelu(node):
    return [_op(node, "Gelu", _op(node, "Add", node.inputs[0], node.inputs[1]))]


def _fast_gelu(node):
    x = node.inputs[0]
    x = _op(node, "Add", x, node.inputs[1]) if _input(node, 1) is not None else x
    return [_op(node, "Gelu", x, approximate="tanh")]


def _quick_gelu(node):
    x = node.inputs[0]
    scaled = _op(node, "Mul", x, _scalar(node, "alpha", _float(node, "alpha", 1.702), x))
    return [_op(node, "Mul", x, _op(node, "Sigmoid", scaled))]


def _skip_layer_norm(node):
    # (input, skip, gamma, beta?, bias?) -> (output, mean, inverse deviation, input + skip + bias)
    if _used(node, 1) or _used(node, 2):
        return None
    total = _op(node, "Add", node.inputs[0], node.inputs[1])
    if _input(node, 4) is not None:
        total = _op(node, "Add", total, node.inputs[4])
    parameters = [node.inputs[2], *([node.inputs[3]] if _input(node, 3) is not None else [])]
    result = _op(
        node, "LayerNormalization", total, *parameters, axis=-1, epsilon=_float(node, "epsilon", 1e-12)
    )
    return [result, None, None, total]


def _fused_matmul(node):
    if edit.integer(node, "transBatchA", 0) or edit.integer(node, "transBatchB", 0):
        return None
    sides = []
    for value, flag in zip(node.inputs, ("transA", "transB"), strict=True):
        if edit.integer(node, flag, 0):
            if value.shape is None:
                return None
            rank = len(value.shape)
            if rank > 1:
                order = [*range(rank - 2), rank - 1, rank - 2]
                value = _op(node, "Transpose", value, perm=order)
        sides.append(value)
    result = _op(node, "MatMul", *sides)
    alpha = _float(node, "alpha", 1.0)
    return [
        result if alpha == 1.0 else _op(node, "Mul", result, _scalar(node, "alpha", alpha, node.inputs[0]))
    ]


def _fused_conv(node):
    # Y = activation(Conv(X, W, B) + Z)
    skip = {"activation", "activation_params"}
    attributes = {name: attr for name, attr in node.attributes.items() if name not in skip}
    conv = ir.Node(
        "", "Conv", [v for v in node.inputs[:3] if v is not None], attributes, name=f"{node.name}/Conv"
    )
    conv.outputs[0].name = f"{node.name}/Conv/0"
    node.graph.insert_before(node, conv)
    y = conv.outputs[0]
    y = _op(node, "Add", y, node.inputs[3]) if _input(node, 3) is not None else y
    return _activated(node, y, "activation_params")


def _fused_gemm(node):
    attributes = {n: a for n, a in node.attributes.items() if n in ("alpha", "beta", "transA", "transB")}
    gemm = ir.Node(
        "", "Gemm", [v for v in node.inputs if v is not None], attributes, name=f"{node.name}/Gemm"
    )
    gemm.outputs[0].name = f"{node.name}/Gemm/0"
    node.graph.insert_before(node, gemm)
    alpha = {"LeakyRelu": "activation_alpha"}
    return _activated(node, gemm.outputs[0], alpha)


def _activated(node: ir.Node, y: ir.Value, where) -> list[ir.Value] | None:
    kind = node.attributes["activation"].as_string() if "activation" in node.attributes else ""
    numbers = []
    if isinstance(where, str) and where in node.attributes:
        numbers = list(node.attributes[where].as_floats())
    match kind:
        case "":
            return [y]
        case "Relu" | "Sigmoid" | "Tanh":
            return [_op(node, kind, y)]
        case "LeakyRelu" if isinstance(where, dict):
            return [_op(node, kind, y, alpha=_float(node, where[kind], 0.01))]
        case "LeakyRelu" if len(numbers) == 1:
            return [_op(node, kind, y, alpha=numbers[0])]
        case "Clip" if len(numbers) == 2:
            return [_op(node, kind, y, *(_scalar(node, n, v, y) for n, v in zip("lu", numbers, strict=True)))]
        case "HardSigmoid" if len(numbers) == 2:
            return [_op(node, kind, y, alpha=numbers[0], beta=numbers[1])]
    return None


TABLE = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
    **quantised.CONTRIB,
}
"""Operator to rewriter; a rewriter returns the new outputs, or None for a form that it does not know."""
