"""ConvTranspose, one small convolution of the input for each phase of the output.

Along an axis of stride ``s``, dilation ``d`` and leading pad ``a``, output ``o = s*t + r`` sums the taps
``k`` with ``k*d = r + a (mod s)``, each times input ``t + (r + a - k*d) / s``.  So the outputs of one phase
``r`` are a convolution of stride 1 with every ``s/gcd(s, d)``-th tap, the last one first.  Nothing is
multiplied by zeros between pixels.  An N:M pattern runs along the input channels of each tap, so every phase
has it.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from tvm import relax

from sparsec.compiler.errors import CompileError
from sparsec.compiler.to_relax import linear
from sparsec.compiler.to_relax.activations import reshaped
from sparsec.schedules import contraction
from sparsec.schedules.contraction import Gemm
from sparsec.schedules.elements import FLOAT32


@dataclass(frozen=True)
class Phase:
    """``taps`` of one output phase along an axis, in the order of the inputs they meet.

    The first meets input ``first`` at the phase's first output, each other one ``dilation`` inputs further.
    """

    taps: tuple[int, ...]
    first: int
    dilation: int

    def pads(self, inputs: int, outputs: int) -> tuple[int, int]:
        """Zeros before and after ``inputs`` for ``outputs``; fewer than none leave inputs out."""
        reach = (len(self.taps) - 1) * self.dilation
        return -self.first, outputs + reach + self.first - inputs


def phases(kernel: int, stride: int, dilation: int, pad: int) -> list[Phase]:
    """The phases of one axis; one that no tap reaches has no taps."""
    found = []
    for r in range(stride):
        taps = tuple(k for k in reversed(range(kernel)) if (r + pad - k * dilation) % stride == 0)
        first = (r + pad - taps[0] * dilation) // stride if taps else 0
        found.append(Phase(taps, first, dilation // math.gcd(stride, dilation)))
    return found


def products(node: ir.Node) -> list[tuple]:
    """``(spec, weight)`` of each product that computes ``node``, whose weight is constant.

    Where the kernel is as large as the stride, no two inputs meet in an output: then it is one matrix
    product per pixel whose columns are spread over the output's tile.  Else it is a convolution for each
    phase that a tap reaches, in the order of ``_phases``.
    """
    precision = linear.precision_of(node)
    return [
        (spec if precision == FLOAT32.name else dataclasses.replace(spec, precision=precision), weight)
        for spec, weight in _products(node)
    ]


def _products(node: ir.Node) -> list[tuple]:
    """``products`` in float32."""
    group, weight = _weight(node)
    shape, pattern = linear.spatial_shape(node.inputs[0]), linear.pattern_of(node)
    if _tiled(node, weight):
        depth, out, *_ = weight.shape
        # Columns are taps by channels: a block must not straddle two taps.
        pattern = dataclasses.replace(pattern, block=math.gcd(pattern.block, out))
        wide = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, depth))
        return [(Gemm(tuple(shape[:3]), depth, wide.shape[0], pattern), wide)]
    b, in_h, in_w, in_c = shape
    *_, out_h, out_w, out_c = linear.spatial_shape(node.outputs[0])
    rows, columns = _phases(node, weight)
    per_group = weight.reshape(group, in_c // group, *weight.shape[1:])
    ohwi = per_group.transpose(0, 2, 3, 4, 1).reshape(out_c, *weight.shape[2:], in_c // group)
    found = []
    for top, left in itertools.product(rows, columns):
        if not (top.taps and left.taps):
            continue
        before_h, after_h = top.pads(in_h, -(-out_h // len(rows)))
        before_w, after_w = left.pads(in_w, -(-out_w // len(columns)))
        spec = contraction.conv(
            batch=b,
            in_h=in_h,
            in_w=in_w,
            in_c=in_c,
            out_c=out_c,
            k_h=len(top.taps),
            k_w=len(left.taps),
            dilations=(top.dilation, left.dilation),
            pads=(before_h, before_w, after_h, after_w),
            groups=group,
            pattern=pattern,
        )
        found.append((spec, np.ascontiguousarray(ohwi[:, top.taps][:, :, left.taps])))
    return found


def conv_transpose(importer, node: ir.Node, inputs):
    """Converts ``node``, whose weight is constant."""
    x = reshaped(importer, inputs[0], linear.spatial_shape(node.inputs[0]))
    _, weight = _weight(node)
    results, packed, precision = [], 0, FLOAT32.name
    for spec, part in products(node):
        y, size, precision = linear.apply(importer, node, x, spec, part)
        results.append(y)
        packed += size
    linear.record(importer, node, weight, packed, precision)
    if _tiled(node, weight):
        y = importer.bb.emit(linear.with_bias(_spread(results[0], weight), inputs))
    else:
        y = _interleaved(importer, node, results, _phases(node, weight), inputs)
    return reshaped(importer, y, [int(d) for d in node.outputs[0].shape])


def _weight(node: ir.Node) -> tuple[int, np.ndarray]:
    """The groups, and the weight ``[C, O/group, kh, kw]``."""
    group, weight = linear.attribute(node, "group", 1), node.inputs[1].const_value.numpy()
    if weight.shape[0] % group:
        raise CompileError(
            f"ConvTranspose '{node.name}': {weight.shape[0]} channels do not divide into {group} groups"
        )
    return group, weight[:, :, None] if weight.ndim == 3 else weight


def _tiled(node: ir.Node, weight: np.ndarray) -> bool:
    """Whether each input alone makes a tile of the output."""
    strides, dilations = linear.two(node, "strides", 1), linear.two(node, "dilations", 1)
    moved = any((*linear.four(node), *linear.two(node, "output_padding", 0)))
    grouped = linear.attribute(node, "group", 1) > 1
    return weight.shape[2:] == strides and dilations == (1, 1) and not grouped and not moved


def _phases(node: ir.Node, weight: np.ndarray) -> list[list[Phase]]:
    """The phases of the two axes."""
    strides, pads = linear.two(node, "strides", 1), linear.four(node)
    dilations = linear.two(node, "dilations", 1)
    return [phases(weight.shape[2 + i], strides[i], dilations[i], pads[i]) for i in (0, 1)]


def _spread(y, weight: np.ndarray):
    """``[b, h, w, kh*kw*O]`` to ``[b, h*kh, w*kw, O]``."""
    b, h, w, _ = (int(d) for d in y.ty.shape)
    _, out, k_h, k_w = weight.shape
    y = relax.op.permute_dims(relax.op.reshape(y, [b, h, w, k_h, k_w, out]), [0, 1, 3, 2, 4, 5])
    return relax.op.reshape(y, [b, h * k_h, w * k_w, out])


def _interleaved(importer, node: ir.Node, results: list, axes: list[list[Phase]], inputs):
    """The phases with their bias, put beside each other along the width, then along the height."""
    emit, results = importer.bb.emit, iter(results)
    b, *_ = linear.spatial_shape(node.inputs[0])
    *_, out_h, out_w, out_c = linear.spatial_shape(node.outputs[0])
    high, wide = -(-out_h // len(axes[0])), -(-out_w // len(axes[1]))
    empty = relax.op.zeros(relax.ShapeExpr([b, high, wide, out_c]), "float32")
    rows = []
    for top in axes[0]:
        row = [next(results) if top.taps and left.taps else empty for left in axes[1]]
        row = [emit(linear.with_bias(phase, inputs)) for phase in row]
        row = row[0] if len(row) == 1 else emit(relax.op.concat(row, axis=3))
        rows.append(emit(relax.op.reshape(row, [b, high, 1, wide * len(axes[1]) * out_c])))
    y = rows[0] if len(rows) == 1 else emit(relax.op.concat(rows, axis=2))
    y = emit(relax.op.reshape(y, [b, high * len(axes[0]), wide * len(axes[1]), out_c]))
    if (high * len(axes[0]), wide * len(axes[1])) == (out_h, out_w):
        return y
    return emit(relax.op.strided_slice(y, [1, 2], [0, 0], [out_h, out_w]))
