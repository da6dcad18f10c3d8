"""MatMul, Gemm, Conv and ConvTranspose with constant weights: packed here, run by our kernels."""

import dataclasses

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from sparsec.compiler.errors import CompileError
from sparsec.compiler.to_relax import activations, attention
from sparsec.compiler.to_relax.activations import reshaped
from sparsec.schedules import contraction
from sparsec.schedules.contraction import Gemm
from sparsec.schedules.layout import DENSE, Pattern

LAYERS = ("MatMul", "NMMatMul", "Gemm", "NMGemm", "ConvNHWC", "ConvNWC")


def layer(node: ir.Node):
    """``(spec, weight)`` of a layer with a constant weight: its kernel with the node's own pattern."""
    if node.op_type in ("MatMul", "NMMatMul"):
        return gemm_layer(node, node.inputs[1].const_value.numpy().T)
    if node.op_type in ("Gemm", "NMGemm"):
        weight = node.inputs[1].const_value.numpy()
        return gemm_layer(node, weight if attribute(node, "transB", 0) else weight.T)
    return conv_layer(node)


def constant_layer(node: ir.Node):
    """``layer(node)`` where the node is one of ours with a constant float weight, else None."""
    if node.op_type not in LAYERS or node.inputs[1].const_value is None or not is_float(node.inputs[0]):
        return None
    if node.op_type.endswith("MatMul") and (len(node.inputs[1].shape) != 2 or len(node.inputs[0].shape) < 2):
        return None
    return layer(node)


def gemm_layer(node: ir.Node, weight: np.ndarray):
    """``weight [n, k]`` applied to the last axis."""
    lead = tuple(int(d) for d in node.outputs[0].shape)[:-1]
    return Gemm(lead, weight.shape[1], weight.shape[0], pattern_of(node)), np.ascontiguousarray(weight)


def conv_layer(node: ir.Node):
    weight = ohwi(node.inputs[1].const_value.numpy())
    shape = spatial_shape(node.inputs[0])
    spec = contraction.conv(
        batch=shape[0],
        in_h=shape[1],
        in_w=shape[2],
        in_c=shape[3],
        out_c=weight.shape[0],
        k_h=weight.shape[1],
        k_w=weight.shape[2],
        strides=two(node, "strides", 1),
        dilations=two(node, "dilations", 1),
        pads=four(node),
        groups=attribute(node, "group", 1),
        pattern=pattern_of(node),
    )
    return spec, weight


def matmul(importer, node: ir.Node, inputs):
    made = constant_layer(node)
    if made is None:
        attended = attention.attend(importer, node)
        return activations.matmul(importer, node, inputs) if attended is None else attended
    return contract(importer, node, inputs[0], *made)


def gemm(importer, node: ir.Node, inputs):
    made = constant_layer(node)
    if made is None:
        return None
    x = inputs[0]
    if attribute(node, "transA", 0):
        x = importer.bb.emit(relax.op.permute_dims(x, [1, 0]))
    y = contract(importer, node, x, *made)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if alpha != 1.0:
        y = relax.op.multiply(y, relax.const(np.float32(alpha)))
    if len(inputs) > 2 and inputs[2] is not None and beta != 0.0:
        c = inputs[2] if beta == 1.0 else relax.op.multiply(inputs[2], relax.const(np.float32(beta)))
        y = relax.op.add(y, c)
    return y


def conv(importer, node: ir.Node, inputs):
    spec, weight = layer(node)
    y = contract(importer, node, reshaped(importer, inputs[0], spec.x_shape), spec, weight)
    y = reshaped(importer, y, [int(d) for d in node.outputs[0].shape])
    return with_bias(y, inputs)


def conv_transpose(importer, node: ir.Node, inputs):
    """``ConvTranspose`` as a convolution of the input with ``stride - 1`` zeros between its pixels.

    Where the kernel is as large as the stride, no two inputs meet in an output: then it is one matrix
    product per pixel whose columns are spread over the output's tile.
    """
    group = attribute(node, "group", 1)
    weight = node.inputs[1].const_value.numpy()  # [C, O/group, *kernel]
    if weight.ndim == 3:
        weight = weight[:, :, None]
    shape = spatial_shape(node.inputs[0])
    strides, dilations, pads = two(node, "strides", 1), two(node, "dilations", 1), four(node)
    extra = two(node, "output_padding", 0)
    out_shape = [int(d) for d in node.outputs[0].shape]
    kernel = weight.shape[2:]
    if kernel == strides and group == 1 and not any(pads) and not any(extra):
        wide = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]))
        x = reshaped(importer, inputs[0], shape)
        y = contract(importer, node, x, Gemm(tuple(shape[:3]), wide.shape[1], wide.shape[0]), wide)
        y = relax.op.reshape(y, [*shape[:3], *kernel, weight.shape[1]])
        y = relax.op.permute_dims(y, [0, 1, 3, 2, 4, 5])
        return with_bias(relax.op.reshape(y, out_shape), inputs)
    if weight.shape[0] % group:
        raise CompileError(
            f"ConvTranspose '{node.name}': {weight.shape[0]} channels do not divide into {group} groups"
        )
    per_group = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    flipped = per_group.transpose(0, 2, 3, 4, 1)[:, :, ::-1, ::-1]  # [g, O/g, kh, kw, C/g]
    flipped = np.ascontiguousarray(flipped.reshape(-1, *flipped.shape[2:]))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    before = [reach[i] - pads[i] for i in (0, 1)]
    after = [reach[i] - pads[i + 2] + extra[i] for i in (0, 1)]
    stuffed = zero_stuff(importer, reshaped(importer, inputs[0], shape), strides, before, after)
    size = [int(d) for d in stuffed.ty.shape]
    spec = contraction.conv(
        batch=size[0],
        in_h=size[1],
        in_w=size[2],
        in_c=size[3],
        out_c=flipped.shape[0],
        k_h=kernel[0],
        k_w=kernel[1],
        strides=(1, 1),
        dilations=dilations,
        pads=(0, 0, 0, 0),
        groups=group,
        pattern=DENSE,
    )
    y = contract(importer, node, stuffed, spec, flipped)
    return with_bias(reshaped(importer, y, out_shape), inputs)


def zero_stuff(importer, x, strides, before, after):
    """Zeros between the pixels of ``x [b, h, w, c]`` and around it; negative margins crop."""
    b, h, w, c = (int(d) for d in x.ty.shape)
    out_h = (h - 1) * strides[0] + 1 + before[0] + after[0]
    out_w = (w - 1) * strides[1] + 1 + before[1] + after[1]

    def stuffed(data):
        def pixel(n, i, j, k):
            p, q = i - before[0], j - before[1]
            inside = tirx.all(p >= 0, q >= 0, p < (h - 1) * strides[0] + 1, q < (w - 1) * strides[1] + 1)
            on_grid = tirx.all(tirx.floormod(p, strides[0]) == 0, tirx.floormod(q, strides[1]) == 0)
            value = data[n, tirx.floordiv(p, strides[0]), tirx.floordiv(q, strides[1]), k]
            return tirx.if_then_else(tirx.all(inside, on_grid), value, tirx.const(0.0, data.dtype))

        return te.compute((b, out_h, out_w, c), pixel, name="zero_stuff")

    return importer.bb.emit_te(stuffed, x, primfunc_name_hint="zero_stuff")


# Shared by the converters above ---------------------------------------------------------------------


def contract(importer, node: ir.Node, x, spec, weight: np.ndarray):
    """The kernel of ``spec`` on ``x``, with its weight packed and its layer recorded."""
    if importer.choices.get(node.name) == "dense":
        spec = dataclasses.replace(spec, pattern=DENSE)
    arrays = spec.pack(weight.astype(np.float32, copy=False))
    packed = [importer.weight(array, node) for array in arrays]
    importer.forget(node.inputs[1])  # two copies of every weight would double the memory of a compilation
    importer.layers.append(
        {
            "name": node.name,
            "op": node.op_type.removeprefix("NM").removesuffix("NHWC").removesuffix("NWC"),
            "shape": "x".join(map(str, weight.shape)),
            "pattern": pattern_text(node),
            "kernel": "sparse" if getattr(spec, "pattern", DENSE) != DENSE else "dense",
            "dense_bytes": int(weight.size * 4),
            "packed_bytes": int(sum(array.nbytes for array in arrays)),
        }
    )
    return importer.kernel(type(spec).__name__.lower(), spec.prim_func(), [x, *packed], list(spec.y_shape))


def pattern_of(node: ir.Node) -> Pattern:
    n, m, block, scattered = (attribute(node, key, 0) for key in ("n", "m", "block", "scattered"))
    return Pattern(n, m, block, bool(scattered)) if m else DENSE


def pattern_text(node: ir.Node) -> str:
    pattern = pattern_of(node)
    if pattern == DENSE:
        return "dense"
    shared = f"x{pattern.block}" if pattern.block > 1 else ""
    if pattern.scattered:
        return f"unstructured{shared} {100 * (1 - pattern.n / pattern.m):.0f}%"
    return f"{pattern.n}:{pattern.m}{shared}"


def with_bias(y, inputs):
    return relax.op.add(y, inputs[2]) if len(inputs) > 2 and inputs[2] is not None else y


def ohwi(weight: np.ndarray) -> np.ndarray:
    """``[O, I, H, W]`` or ``[O, I, W]`` to ``[O, H, W, I]``."""
    weight = weight[:, :, None] if weight.ndim == 3 else weight
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1))


def spatial_shape(value: ir.Value) -> list[int]:
    """``[b, h, w, c]`` of a channels-last value; a one-dimensional signal has height 1."""
    shape = [int(d) for d in value.shape]
    return shape if len(shape) == 4 else [shape[0], 1, *shape[1:]]


def two(node: ir.Node, name: str, default: int) -> tuple[int, int]:
    values = list(node.attributes[name].as_ints()) if name in node.attributes else [default, default]
    return tuple(values) if len(values) == 2 else (1 if default else 0, values[0])


def four(node: ir.Node) -> tuple[int, int, int, int]:
    """Pads as (top, left, bottom, right)."""
    pads = list(node.attributes["pads"].as_ints())
    return tuple(pads) if len(pads) == 4 else (0, pads[0], 0, pads[1])


def attribute(node: ir.Node, name: str, default):
    return node.attributes[name].value if name in node.attributes else default


def is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
