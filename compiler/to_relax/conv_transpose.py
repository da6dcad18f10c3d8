"""ConvTranspose, one small convolution of the input for each phase of the output.

Along an axis of stride ``s``, dilation ``d`` and leading pad ``a``, output ``o = s*t + r`` sums the taps
``k`` with ``k*d = r + a (mod s)``, each times input ``t + (r + a - k*d) / s``.  So the outputs of one phase
``r`` are a dense convolution of stride 1 with every ``s/gcd(s, d)``-th tap, the last one first.  Nothing is
multiplied by zeros between pixels.
"""

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


def conv_transpose(importer, node: ir.Node, inputs):
    """Converts ``node``, whose weight is constant.

    Where the kernel is as large as the stride, no two inputs meet in an output: then it is one matrix
    product per pixel whose columns are spread over the output's tile.
    """
    group = linear.attribute(node, "group", 1)
    weight = node.inputs[1].const_value.numpy()  # [C, O/group, *kernel]
    if weight.ndim == 3:
        weight = weight[:, :, None]
    if weight.shape[0] % group:
        raise CompileError(
            f"ConvTranspose '{node.name}': {weight.shape[0]} channels do not divide into {group} groups"
        )
    shape = linear.spatial_shape(node.inputs[0])
    strides, pads = linear.two(node, "strides", 1), linear.four(node)
    dilations, extra = linear.two(node, "dilations", 1), linear.two(node, "output_padding", 0)
    x = reshaped(importer, inputs[0], shape)
    if weight.shape[2:] == strides and dilations == (1, 1) and group == 1 and not any((*pads, *extra)):
        y = importer.bb.emit(linear.with_bias(_tiles(importer, node, x, weight), inputs))
    else:
        axes = [phases(weight.shape[2 + i], strides[i], dilations[i], pads[i]) for i in (0, 1)]
        y = _interleaved(importer, node, x, weight, group, axes, inputs)
    return reshaped(importer, y, [int(d) for d in node.outputs[0].shape])


def _tiles(importer, node: ir.Node, x, weight: np.ndarray):
    """Each pixel of ``x [b, h, w, C]`` times the weight is a tile of ``[b, h*kh, w*kw, O]``."""
    b, h, w, _ = (int(d) for d in x.ty.shape)
    depth, out, k_h, k_w = weight.shape
    wide = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, depth))
    y = linear.contract(importer, node, x, Gemm((b, h, w), depth, wide.shape[0]), wide)
    y = relax.op.permute_dims(relax.op.reshape(y, [b, h, w, k_h, k_w, out]), [0, 1, 3, 2, 4, 5])
    return relax.op.reshape(y, [b, h * k_h, w * k_w, out])


def _interleaved(importer, node: ir.Node, x, weight: np.ndarray, group: int, axes: list, inputs):
    """All phases with their bias, put beside each other along the width, then along the height."""
    emit = importer.bb.emit
    b, in_h, in_w, in_c = (int(d) for d in x.ty.shape)
    *_, out_h, out_w, out_c = linear.spatial_shape(node.outputs[0])
    high, wide = -(-out_h // len(axes[0])), -(-out_w // len(axes[1]))
    per_group = weight.reshape(group, in_c // group, *weight.shape[1:])
    ohwi = per_group.transpose(0, 2, 3, 4, 1).reshape(out_c, *weight.shape[2:], in_c // group)
    packed = 0

    def one(top: Phase, left: Phase):
        nonlocal packed
        if not (top.taps and left.taps):
            return relax.op.zeros(relax.ShapeExpr([b, high, wide, out_c]), "float32")
        before_h, after_h = top.pads(in_h, high)
        before_w, after_w = left.pads(in_w, wide)
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
        )
        y, size = linear.apply(importer, node, x, spec, ohwi[:, top.taps][:, :, left.taps])
        packed += size
        return y

    rows = []
    for top in axes[0]:
        row = [emit(linear.with_bias(one(top, left), inputs)) for left in axes[1]]
        row = row[0] if len(row) == 1 else emit(relax.op.concat(row, axis=3))
        rows.append(emit(relax.op.reshape(row, [b, high, 1, wide * len(axes[1]) * out_c])))
    y = rows[0] if len(rows) == 1 else emit(relax.op.concat(rows, axis=2))
    linear.record(importer, node, weight, "dense", packed)
    y = emit(relax.op.reshape(y, [b, high * len(axes[0]), wide * len(axes[1]), out_c]))
    if (high * len(axes[0]), wide * len(axes[1])) == (out_h, out_w):
        return y
    return emit(relax.op.strided_slice(y, [1, 2], [0, 0], [out_h, out_w]))
