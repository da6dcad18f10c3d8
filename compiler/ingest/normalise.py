"""Forms of standard operators that TVM's importer gets wrong or does not know, written in ones that it does.

Found by running the examples of the ONNX standard through ONNX Runtime and through TVM side by side.
What cannot be rewritten is refused in ``forms``.
"""

import numpy as np
import onnx_ir as ir

from sparsec.compiler.ingest import edit, einsum


def normalise(graph: ir.Graph) -> None:
    """Rewrite nodes of ``graph`` in place; shapes and dtypes must have been inferred."""
    for node in list(graph):
        if not node.domain and node.op_type in RULES:
            RULES[node.op_type](node)


def _isinf(node: ir.Node) -> None:
    """The importer ignores the sign: IsInf(x, one sign) -> IsInf(x) and x > 0 (or < 0)."""
    negative, positive = edit.integer(node, "detect_negative", 1), edit.integer(node, "detect_positive", 1)
    if negative and positive:
        return
    x = node.inputs[0]
    node.attributes.pop("detect_negative", None)
    node.attributes.pop("detect_positive", None)
    if not (negative or positive):
        zeros = np.zeros(edit.static_shape(node.outputs[0]) or (), bool)
        if edit.static_shape(node.outputs[0]) is not None:
            edit.replace(node, [edit.initializer(node.graph, f"{node.name}/never", zeros)])
        return
    zero = edit.initializer(node.graph, f"{node.name}/zero", np.zeros((), x.dtype.numpy()))
    infinite = edit.node_before(node, "IsInf", [x]).outputs[0]
    side = edit.node_before(node, "Greater" if positive else "Less", [x, zero]).outputs[0]
    edit.replace(node, [edit.node_before(node, "And", [infinite, side]).outputs[0]])


def _conv_transpose(node: ir.Node) -> None:
    """The importer ignores output_shape and auto_pad: both become pads and output_padding."""
    attr = node.attributes.get("auto_pad")
    mode = attr.as_string() if attr is not None else "NOTSET"
    if "output_shape" not in node.attributes and mode == "NOTSET":
        node.attributes.pop("auto_pad", None)  # written out, it says no more than its absence
        return
    given, out, kernel = (edit.static_shape(v) for v in (node.inputs[0], node.outputs[0], node.inputs[1]))
    if given is None or out is None or kernel is None:
        return
    rank = len(given) - 2
    strides = edit.integers(node, "strides", [1] * rank)
    dilations = edit.integers(node, "dilations", [1] * rank)
    extra = edit.integers(node, "output_padding", [0] * rank)
    begin, end = [0] * rank, [0] * rank
    for i in range(rank):
        covered = strides[i] * (given[2 + i] - 1) + (kernel[2 + i] - 1) * dilations[i] + 1
        total = covered + extra[i] - out[2 + i]
        if total < 0:
            # More was asked for than the kernel reaches: the rest is output padding.
            extra[i], total = extra[i] - total, 0
        # ONNX: SAME_UPPER puts the odd one at the end, everything else at the beginning.
        begin[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
        end[i] = total - begin[i]
    if any(e >= s for e, s in zip(extra, strides, strict=True)):
        return
    for name in ("auto_pad", "output_shape"):
        node.attributes.pop(name, None)
    node.attributes["pads"] = ir.AttrInt64s("pads", begin + end)
    node.attributes["output_padding"] = ir.AttrInt64s("output_padding", extra)


def _eye_like(node: ir.Node) -> None:
    """The values of EyeLike depend on the shape alone."""
    shape, dtype = edit.static_shape(node.outputs[0]), node.outputs[0].dtype
    if shape is not None and dtype:
        eye = np.eye(*shape, k=edit.integer(node, "k", 0)).astype(dtype.numpy())
        edit.replace(node, [edit.initializer(node.graph, f"{node.name}/eye", eye)])


def _dropout(node: ir.Node) -> None:
    """In inference the mask is true everywhere."""
    training = edit.constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1)
    shape = edit.static_shape(node.outputs[0])
    if len(node.outputs) < 2 or shape is None or training is None or training.any():
        return
    mask = edit.initializer(node.graph, f"{node.name}/mask", np.ones(shape, bool))
    edit.replace(node, [node.inputs[0], mask])


def _matmul(node: ir.Node) -> None:
    """A weight of shape [1, ..., K, N] is the matrix [K, N] where the other operand has as many axes."""
    given, weight = edit.static_shape(node.inputs[0]), edit.constant(node.inputs[1])
    if given is None or weight is None or not 2 < weight.ndim <= len(given):
        return
    if set(weight.shape[:-2]) == {1}:
        name = f"{node.inputs[1].name}_matrix"
        node.replace_input_with(1, edit.initializer(node.graph, name, weight.reshape(weight.shape[-2:])))


def _one_hot(node: ir.Node) -> None:
    """OneHot(i, depth, [off, on]) -> Where(wrap(i) == [0 .. depth), on, off); few element types work else."""
    shape, out = edit.static_shape(node.inputs[0]), edit.static_shape(node.outputs[0])
    if shape is None or out is None:
        return
    axis = edit.integer(node, "axis", -1)
    axis = axis + len(out) if axis < 0 else axis

    def number(name, array):
        return edit.initializer(node.graph, f"{node.name}/{name}", array)

    def op(op_type, *inputs, **attributes):
        return edit.node_before(node, op_type, inputs, attributes).outputs[0]

    depth = out[axis]
    indices = op("Cast", node.inputs[0], to=int(ir.DataType.INT64))
    indices = op("Unsqueeze", indices, number("axes", np.array([axis])))
    below = op("Less", indices, number("zero", np.array(0)))
    indices = op("Where", below, op("Add", indices, number("depth", np.array(depth))), indices)
    places = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(len(out))])
    hot = op("Equal", indices, number("places", places))
    off, on = (op("Gather", node.inputs[2], number(f"value_{i}", np.array(i))) for i in range(2))
    edit.replace(node, [op("Where", hot, on, off)])


def _pow(node: ir.Node) -> None:
    """The importer wants both operands of one type: Pow(float x, int y) -> Pow(x, float(y)); x^2 -> x * x."""
    x, y = node.inputs
    power = edit.constant(y)
    square = power is not None and power.size == 1 and float(power.item()) == 2.0
    if square and power.ndim <= len(x.shape or ()):
        edit.replace(node, [edit.node_before(node, "Mul", [x, x]).outputs[0]])
    elif x.dtype and y.dtype and x.dtype != y.dtype and x.dtype.is_floating_point():
        cast = edit.node_before(node, "Cast", [y], {"to": int(x.dtype)}).outputs[0]
        node.replace_input_with(1, cast)


def _resize(node: ir.Node) -> None:
    """Scales and sizes of some axes -> sizes of all axes, where they mean the same."""
    given, out = edit.static_shape(node.inputs[0]), edit.static_shape(node.outputs[0])
    if given is None or out is None or _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return
    crops = _text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if crops:
        return
    if scaled(node) and not exact_scales(node):
        return
    node.attributes.pop("axes", None)
    full = edit.initializer(node.graph, f"{node.name}/sizes", np.array(out, np.int64))
    node.resize_inputs(4)
    for index, value in enumerate((node.inputs[0], None, None, full)):
        node.replace_input_with(index, value)


def scaled(node: ir.Node) -> bool:
    """Whether a Resize is given scales; an empty tensor stands for none."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is not None and edit.static_shape(value) != (0,)


def exact_scales(node: ir.Node) -> bool:
    """Whether the scales of a Resize are the ratios of its sizes; the importer knows only these."""
    given, out = edit.static_shape(node.inputs[0]), edit.static_shape(node.outputs[0])
    scales = edit.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if given is None or out is None or scales is None:
        return False
    axes = edit.integers(node, "axes", list(range(len(given))))
    return all(np.isclose(given[a] * float(s), out[a], rtol=1e-5) for a, s in zip(axes, scales, strict=True))


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


RULES = {
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "Einsum": einsum.rewrite,
    "EyeLike": _eye_like,
    "IsInf": _isinf,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Pow": _pow,
    "Resize": _resize,
}
