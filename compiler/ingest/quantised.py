"""Quantised models: operators on integers become the operators on reals that they stand for, in QDQ form.

    QLinearConv(x, sx, zx, w, sw, zw, sy, zy, b)
        ->  QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(b)), sy, zy)

and likewise ONNX Runtime's own ones.  So every spelling of a quantised model is one case for
``passes/integer.py``, which finds the integers again; weights of such layers are not folded to floats before.
Signatures: ONNX, and ONNX Runtime's ``docs/ContribOperators.md``.
"""

import onnx_ir as ir

from sparsec.compiler.ingest import edit

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_JOINS = (*_PRODUCTS, "Add", "Mul", "Concat")
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "MaxPool", "Split")


def meets_integers(node: ir.Node) -> bool:
    """Whether ``node`` dequantises a constant for an operator whose other operand is quantised as well."""
    return (
        not node.domain
        and node.op_type == "DequantizeLinear"
        and node.inputs[0].dtype in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)
        and _meets(node.outputs[0])
    )


def _meets(value: ir.Value) -> bool:
    for use in value.uses():
        reader = use.node
        if reader.domain:
            continue
        if reader.op_type in ("Transpose", "Identity") and _meets(reader.outputs[0]):
            return True
        if reader.op_type == "Gather" and use.idx == 0 and _is_quantised(reader.outputs[0]):
            return True
        if reader.op_type in _JOINS and any(
            _was_quantised(other) for i, other in enumerate(reader.inputs) if i != use.idx
        ):
            return True
    return False


def _is_quantised(value: ir.Value) -> bool:
    """Whether a QuantizeLinear reads ``value``, perhaps moved."""
    return any(
        use.node.op_type == "QuantizeLinear"
        or (use.node.op_type in _MOVES and any(map(_is_quantised, use.node.outputs)))
        for use in value.uses()
    )


def _was_quantised(value: ir.Value | None) -> bool:
    """Whether ``value`` is dequantised activations, perhaps moved, or the product of such."""
    node = value.producer() if value is not None else None
    if node is not None and not node.domain and node.op_type == "MatMul":
        node = node.inputs[0].producer()
    while node is not None and node.op_type in _MOVES and not node.domain:
        node = node.inputs[0].producer()
    return (
        node is not None
        and not node.domain
        and node.op_type == "DequantizeLinear"
        and node.inputs[0].const_value is None
    )


# Operators on integers -> QDQ --------------------------------------------------------------------------


def _op(node: ir.Node, op_type: str, *inputs, attributes=None) -> ir.Value:
    """``op_type`` in front of ``node`` with ``attributes``, by default those of ``node``."""
    attributes = dict(node.attributes) if attributes is None else attributes
    return edit.node_before(node, op_type, list(inputs), attributes).outputs[0]


def _real(node: ir.Node, at: int, axis: int | None = None) -> ir.Value:
    """The reals of the value, scale and zero point at inputs ``at``, ``at + 1`` and ``at + 2``."""
    attributes = {} if axis is None else {"axis": axis}
    return _op(node, "DequantizeLinear", *_given(node, at, 3), attributes=attributes)


def _given(node: ir.Node, at: int, count: int) -> list[ir.Value]:
    return [value for value in node.inputs[at : at + count] if value is not None]


def _integers(node: ir.Node, real: ir.Value, at: int) -> list[ir.Value]:
    """``real`` with the scale and zero point at inputs ``at`` and ``at + 1``; uint8 without a zero point."""
    return [_op(node, "QuantizeLinear", real, *_given(node, at, 2), attributes={})]


def _bias(node: ir.Node, at: int, x_scale: int, w_scale: int) -> list[ir.Value]:
    """The int32 bias at input ``at``, if there is one: its scale is that of the products."""
    if len(node.inputs) <= at or node.inputs[at] is None:
        return []
    scale = _op(node, "Mul", node.inputs[x_scale], node.inputs[w_scale], attributes={})
    return [_op(node, "DequantizeLinear", node.inputs[at], scale, attributes={"axis": 0})]


def _conv(node):
    if edit.integer(node, "channels_last", 0):
        return None
    attributes = {name: attr for name, attr in node.attributes.items() if name != "channels_last"}
    inputs = [_real(node, 0), _real(node, 3, axis=0), *_bias(node, 8, 1, 4)]
    return _integers(node, _op(node, "Conv", *inputs, attributes=attributes), 6)


def _matmul(node):
    return _integers(node, _op(node, "MatMul", _real(node, 0), _real(node, 3, axis=1), attributes={}), 6)


def _gemm(node):
    axis = 0 if edit.integer(node, "transB", 0) else 1
    inputs = [_real(node, 0), _real(node, 3, axis=axis), *_bias(node, 6, 1, 4)]
    result = _op(node, "Gemm", *inputs)
    return _integers(node, result, 7) if len(node.inputs) > 7 and node.inputs[7] is not None else [result]


def _binary(op_type):
    def rewrite(node):
        return _integers(node, _op(node, op_type, _real(node, 0), _real(node, 3), attributes={}), 6)

    return rewrite


def _unary(op_type):
    def rewrite(node):
        if edit.integer(node, "channels_last", 0):
            return None
        attributes = {n: a for n, a in node.attributes.items() if n not in ("channels_last", "opset")}
        return _integers(node, _op(node, op_type, _real(node, 0), attributes=attributes), 3)

    return rewrite


def _concat(node):
    parts = [_real(node, at) for at in range(2, len(node.inputs), 3)]
    return _integers(node, _op(node, "Concat", *parts), 0)


def _to_float(node):
    """MatMulIntegerToFloat(a, b, a scale, b scale, a zero, b zero, bias): reals from integers."""
    inputs = list(node.inputs) + [None] * 3
    sides = []
    for at, axis in ((0, None), (1, 1)):
        given = [v for v in (inputs[at], inputs[at + 2], inputs[at + 4]) if v is not None]
        attributes = {} if axis is None else {"axis": axis}
        sides.append(_op(node, "DequantizeLinear", *given, attributes=attributes))
    result = _op(node, "MatMul", *sides, attributes={})
    return [result if inputs[6] is None else _op(node, "Add", result, inputs[6], attributes={})]


def _dynamic(node):
    """DynamicQuantizeMatMul(a, b, b scale, b zero, bias): a is quantised when the model runs."""
    quantise = edit.node_before(node, "DynamicQuantizeLinear", [node.inputs[0]], outputs=3)
    codes, scale, zero = quantise.outputs
    inputs = list(node.inputs) + [None] * 2
    total = _op(node, "MatMulInteger", codes, inputs[1], zero, inputs[3], attributes={})
    real = _op(node, "Cast", total, attributes={"to": int(ir.DataType.FLOAT)})
    factor = _op(node, "Mul", scale, inputs[2], attributes={})
    result = _op(node, "Mul", real, factor, attributes={})
    return [result if inputs[4] is None else _op(node, "Add", result, inputs[4], attributes={})]


def _same(node):
    """ONNX Runtime's QuantizeLinear and DequantizeLinear of 8 bits mean the standard ones."""
    return [_op(node, node.op_type, *(v for v in node.inputs if v is not None))]


#: Standard operators to their QDQ form.
STANDARD = {"QLinearConv": _conv, "QLinearMatMul": _matmul}
#: ONNX Runtime's.
CONTRIB = {
    "DequantizeLinear": _same,
    "DynamicQuantizeMatMul": _dynamic,
    "MatMulIntegerToFloat": _to_float,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearSoftmax": _unary("Softmax"),
    "QuantizeLinear": _same,
}
