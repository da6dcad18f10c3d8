"""MatMul, Gemm and Conv with constant weights: packed here, run by our kernels."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from tvm import relax

from sparsec.compiler.to_relax import activations, attention
from sparsec.compiler.to_relax.activations import reshaped
from sparsec.schedules import contraction
from sparsec.schedules.contraction import Conv, Gemm
from sparsec.schedules.contraction_spec import kind_of
from sparsec.schedules.cuda.tensor_gemm import on_tensor_cores
from sparsec.schedules.elements import FLOAT32, INPUTS
from sparsec.schedules.layout import DENSE, Pattern

#: The key of a node's precision in its metadata.
PRECISION = "sparsec.precision"
LAYERS = ("MatMul", "NMMatMul", "Gemm", "NMGemm", "ConvNHWC", "ConvNWC")


def layer(node: ir.Node):
    """``(spec, weight)`` of a node of ``LAYERS`` with a constant weight, with its own pattern."""
    if node.op_type in ("MatMul", "NMMatMul"):
        return gemm_layer(node, node.inputs[1].const_value.numpy().T)
    if node.op_type in ("Gemm", "NMGemm"):
        weight = node.inputs[1].const_value.numpy()
        return gemm_layer(node, weight if attribute(node, "transB", 0) else weight.T)
    return conv_layer(node)


def constant_layer(node: ir.Node):
    """``layer(node)`` where the node is one of ours with a constant float weight, else None."""
    return layer(node) if is_layer(node) else None


def is_layer(node: ir.Node) -> bool:
    if node.op_type not in LAYERS or node.inputs[1].const_value is None or not is_float(node.inputs[0]):
        return False
    ranks = [len(value.shape) for value in node.inputs[:2]]
    return not node.op_type.endswith("MatMul") or (ranks[1] == 2 and ranks[0] >= 2)


def gemm_layer(node: ir.Node, weight: np.ndarray, precision: str | None = None):
    """``weight [n, k]`` applied to the last axis, at ``precision`` or the node's own."""
    lead = tuple(int(d) for d in node.outputs[0].shape)[:-1]
    precision = precision or precision_of(node)
    spec = Gemm(lead, weight.shape[1], weight.shape[0], pattern_of(node), precision=precision)
    return spec, np.ascontiguousarray(weight)


def conv_layer(node: ir.Node, precision: str | None = None, zero: int = 0):
    """A convolution at ``precision`` or the node's own; cells in its padding hold ``zero``."""
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
        precision=precision or FLOAT32.name,
        zero=zero,
    )
    own = precision_of(node)
    if precision is None and (isinstance(spec, Conv) or own in (kind.name for kind in INPUTS)):
        spec = dataclasses.replace(spec, precision=own)
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
    y = contract(importer, node, inputs[0], spec, weight)
    y = reshaped(importer, y, [int(d) for d in node.outputs[0].shape])
    return with_bias(y, inputs)


# Shared by the converters above ---------------------------------------------------------------------


def contract(importer, node: ir.Node, x, spec, weight: np.ndarray):
    """The kernel of ``spec`` on ``x``, with its weight packed and its layer recorded."""
    y, size, precision = apply(importer, node, x, spec, weight)
    record(importer, node, weight, size, precision)
    return y


def run_spec(node: ir.Node, spec, choices: Mapping[str, str]):
    """``spec`` of ``node`` as it runs: without its pattern where ``choices`` says so, at its precision."""
    chosen = dataclasses.replace(spec, pattern=DENSE) if choices.get(node.name) == "dense" else spec
    return on_tensor_cores(chosen)


def apply(importer, node: ir.Node, x, spec, weight: np.ndarray):
    """The chosen kernel of ``spec`` on ``x``, the bytes of its packed weight, and what it computes in."""
    spec = run_spec(node, contraction.packed_for(spec, importer.permute), importer.choices)
    arrays = spec.pack(weight.astype(np.float32, copy=False))
    packed = [importer.weight(array, node) for array in arrays]
    x = importer.narrow.operand(x, kind_of(spec), spec.x_shape)
    y = importer.kernel(type(spec).__name__.lower(), spec.prim_func(), [x, *packed], list(spec.y_shape))
    return y, sum(array.nbytes for array in arrays), kind_of(spec).name


def record(
    importer, node: ir.Node, weight: np.ndarray, packed_bytes: int, precision: str = FLOAT32.name
) -> None:
    """Adds the layer of ``node``, packed by now, to what the artifact says of its layers."""
    lower = {"precision": precision} if PRECISION in node.metadata_props or precision != FLOAT32.name else {}
    importer.forget(node.inputs[1])  # two copies of every weight would double the memory of a compilation
    importer.layers.append(
        {
            "name": node.name,
            "op": node.op_type.removeprefix("NM").removesuffix("NHWC").removesuffix("NWC"),
            "shape": "x".join(map(str, weight.shape)),
            "pattern": pattern_text(node),
            "kernel": "dense" if pattern_of(node).dense else importer.choices.get(node.name, "sparse"),
            "dense_bytes": int(weight.size * 4),
            "packed_bytes": int(packed_bytes),
            **lower,
        }
    )


def pattern_of(node: ir.Node) -> Pattern:
    n, m, block, scattered = (attribute(node, key, 0) for key in ("n", "m", "block", "scattered"))
    return Pattern(n, m, block, bool(scattered)) if m else DENSE


def precision_of(node: ir.Node) -> str:
    """What ``compiler/precision.py`` has marked the node with."""
    return node.metadata_props.get(PRECISION, FLOAT32.name)


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
