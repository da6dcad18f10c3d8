"""Normalisations and paddings that a neighbouring layer can carry, exact up to rounding.

BatchNormalization(Conv(x, W, b))  ->  Conv(x, W * s, (b - mean) * s + beta),  s = gamma / sqrt(var + eps)
Conv(Pad(x, zeros), pads=p)        ->  Conv(x, pads=p + zeros)
"""

import numpy as np
import onnx_ir as ir

from sparsec.compiler.ingest import edit

_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": None}  # of the weight; None: by attribute


def fuse(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.domain:
            continue
        if node.op_type == "BatchNormalization":
            _batch_norm(node)
        elif node.op_type == "Conv":
            _explicit_pads(node)
            _pad(node)


def _only_use(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _batch_norm(node: ir.Node) -> None:
    layer = node.inputs[0].producer()
    if layer is None or layer.domain or layer.op_type not in _CHANNEL_AXIS or not _only_use(node.inputs[0]):
        return
    if edit.integer(node, "training_mode", 0) or any(
        v.uses() or v.is_graph_output() for v in node.outputs[1:]
    ):
        return
    gamma, beta, mean, variance = (edit.constant(value) for value in node.inputs[1:5])
    weight = edit.constant(layer.inputs[1])
    bias_value = layer.inputs[2] if len(layer.inputs) > 2 else None
    bias = np.zeros_like(mean) if bias_value is None and mean is not None else edit.constant(bias_value)
    if any(a is None for a in (gamma, beta, mean, variance, weight, bias)) or weight.dtype.kind != "f":
        return
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    # In double precision, so that one rounding is all that is lost.
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    if not np.isfinite(scale).all():
        return
    scaled = _scale_weight(layer, weight.astype(np.float64), scale)
    if scaled is None or bias.size not in (1, scale.size):
        return
    factor = 1.0
    if layer.op_type == "Gemm":
        # Y = alpha * A B + beta * C: the products' factor stays outside, the bias takes its own in.
        factor = layer.attributes["beta"].as_float() if "beta" in layer.attributes else 1.0
        layer.attributes.pop("beta", None)
    shift = (bias.astype(np.float64).reshape(-1) * factor - mean) * scale + beta
    name = layer.inputs[1].name
    graph = node.graph
    layer.resize_inputs(3)
    layer.replace_input_with(1, edit.initializer(graph, f"{name}_normalized", scaled.astype(weight.dtype)))
    layer.replace_input_with(2, edit.initializer(graph, f"{name}_bias", shift.astype(weight.dtype)))
    edit.replace(node, [layer.outputs[0]] + [None] * (len(node.outputs) - 1))


def _scale_weight(layer: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
    """The weight with each output channel times its scale; None where the shapes do not say how."""
    if layer.op_type == "Gemm":
        axis = 0 if edit.integer(layer, "transB", 0) else 1
    else:
        axis = _CHANNEL_AXIS[layer.op_type]
    if layer.op_type == "ConvTranspose" and (groups := edit.integer(layer, "group", 1)) > 1:
        # The weight is [in, out / groups, ...]: the inputs of group g feed the g-th part of the outputs.
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        if weight.shape[1] * groups != scale.size:
            return None
        per_group = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        return (split * per_group).reshape(weight.shape)
    if weight.shape[axis] != scale.size:
        return None
    return weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def _explicit_pads(node: ir.Node) -> None:
    """auto_pad=SAME_* and VALID as numbers: with static shapes they are the same thing, said plainly."""
    attr = node.attributes.get("auto_pad")
    mode = attr.as_string() if attr is not None else "NOTSET"
    given, out, kernel = (edit.static_shape(v) for v in (node.inputs[0], node.outputs[0], node.inputs[1]))
    if mode == "NOTSET" or given is None or out is None or kernel is None:
        return
    rank = len(given) - 2
    begin, end = [0] * rank, [0] * rank
    if mode != "VALID":
        strides, dilations = (
            edit.integers(node, "strides", [1] * rank),
            edit.integers(node, "dilations", [1] * rank),
        )
        for i in range(rank):
            covered = (out[2 + i] - 1) * strides[i] + (kernel[2 + i] - 1) * dilations[i] + 1
            total = max(covered - given[2 + i], 0)
            begin[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            end[i] = total - begin[i]
    del node.attributes["auto_pad"]
    node.attributes["pads"] = ir.AttrInt64s("pads", begin + end)


def _pad(node: ir.Node) -> None:
    pad = node.inputs[0].producer()
    if pad is None or pad.domain or pad.op_type != "Pad" or "auto_pad" in node.attributes:
        return
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    pads, shape = edit.constant(pad.inputs[1]), edit.static_shape(pad.inputs[0])
    filler = pad.inputs[2] if len(pad.inputs) > 2 else None
    fill = edit.constant(filler)
    if (
        mode != "constant"
        or pads is None
        or shape is None
        or (filler is not None and (fill is None or fill.any()))
    ):
        return
    axes_value = pad.inputs[3] if len(pad.inputs) > 3 else None
    axes = edit.constant(axes_value)
    if axes_value is not None and axes is None:
        return
    rank = len(shape)
    full = np.zeros((2, rank), np.int64)
    full[:, list(range(rank)) if axes is None else axes.tolist()] = pads.reshape(2, -1)
    # Cropping, and padding of the batch or of the channels, are nothing that a convolution can do.
    if full.min() < 0 or full[:, :2].any():
        return
    own = np.array(edit.integers(node, "pads", [0] * (2 * (rank - 2)))).reshape(2, -1)
    node.attributes["pads"] = ir.AttrInt64s("pads", (own + full[:, 2:]).reshape(-1).tolist())
    node.replace_input_with(0, pad.inputs[0])
