"""Layers that multiply integers: MatMul, Gemm and Conv between DequantizeLinear and QuantizeLinear.

    q = QuantizeLinear(Conv(DequantizeLinear(x, sx, zx), DequantizeLinear(w, sw), b * sx * sw), sy, zy)
becomes
    q = QuantizeLinear(Cast(ConvInteger(x, w, zx) + b) * (sx * sw / sy), 1, zy)

with the factor in float32: the arithmetic of ONNX Runtime's QLinearConv, QLinearMatMul and QGemm, bit for
bit. Where something reads the sum as reals it is ``Cast(...) * (sx * sw)``, as MatMulIntegerToFloat has it.

A weight whose zero points are not 0 is shifted; where that leaves int8, it is the sum of two weights that
do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsec.passes.findings import Finding
from sparsec.passes.graph import attribute, is_op, node_name, remove_dead
from sparsec.passes.integer_moves import quantise
from sparsec.passes.quantised import Quantised, Tail, Weight, constant_weight, dequantised, sole_reader, tail
from sparsec.passes.writer import Writer, replace_value

LAYERS = {"MatMul": "MatMulInteger", "Gemm": "MatMulInteger", "Conv": "ConvInteger"}
NAME = "recognise-integer"
_BIAS_SLACK = 1e-4  # of a bias's scale, which the exporter has multiplied in its own order


def find(model: ir.Model) -> list[Finding]:
    """Rewrites every layer whose input and weight are quantised; a finding for each that has either."""
    findings = []
    for node in list(model.graph):
        if is_op(node, *LAYERS):
            found = _layer(node)
            if isinstance(found, str):
                findings.append(Finding(NAME, node_name(node), "declined", found, node.op_type, node.op_type))
            elif found is not None:
                findings.append(found.write(model))
    return findings


@dataclass(frozen=True)
class _Layer:
    node: ir.Node
    x: Quantised
    weight: Weight

    def write(self, model: ir.Model) -> Finding:
        node, name, write = self.node, node_name(self.node), Writer(model, self.node)
        scale = self.x.scale * self._by_channel(self.weight.scale)
        shape = node.outputs[0].shape
        bias, real_bias, out = self._bias(write, scale)
        behind = tail(out)
        total, parts = self._sum(write, shape)
        if bias is not None:
            total = write.op("Add", [total, write.constant(bias, "bias")], ir.DataType.INT32, shape)
        if behind is not None and real_bias is None:
            made = behind.quantised
            real = _scaled(write, total, scale / made.scale, shape)
            replace_value(made.value, limited(write, requantise(write, real, made), behind))
            remove_dead([made.value])
            way = "requantised as ONNX Runtime does"
        else:
            write = Writer(model, out.producer())
            real = _scaled(write, total, scale, shape)
            if real_bias is not None:
                real = write.op("Add", [real, real_bias], ir.DataType.FLOAT, shape)
            replace_value(out, real)
            remove_dead([out])
            way = "its sums are read as floats"
        before = ", ".join([node.op_type, *(behind.ops if behind is not None and real_bias is None else ())])
        scales = "one scale" if scale.size == 1 else "a scale for each channel"
        split = "" if parts == 1 else "; zero points beyond int8: two products"
        reason = f"int8 weights with {scales}, 8-bit input; {way}{split}"
        return Finding(NAME, name, "applied", reason, before, LAYERS[node.op_type])

    def _sum(self, write: Writer, shape) -> tuple[ir.Value, int]:
        """The sums of products, and of how many integer layers they are made."""
        node, op = self.node, LAYERS[self.node.op_type]
        kept = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
        attributes = {k: a for k, a in node.attributes.items() if k in kept}
        zero = write.constant(np.uint8(self.x.zero), "zero")
        made = []
        for part in in_int8(self.weight.centred):
            weight = write.constant(part, "weight")
            name = None if made else node_name(node)
            made.append(
                write.op(op, [self.x.value, weight, zero], ir.DataType.INT32, shape, attributes, name=name)
            )
        node.name = f"{node_name(node)}~float"  # the integer layer has the name from now on
        total = made[0] if len(made) == 1 else write.op("Add", made, ir.DataType.INT32, shape)
        return total, len(made)

    def _bias(self, write: Writer, scale: np.ndarray) -> tuple[np.ndarray | None, ir.Value | None, ir.Value]:
        """The bias as int32 in the scale of the sums, or else as reals, and the value that has it added."""
        out = self.node.outputs[0]
        value, result = self.node.inputs[2] if len(self.node.inputs) > 2 else None, out
        if self.node.op_type == "MatMul" and is_op(add := sole_reader(out), "Add"):
            value, result = add.inputs[1 if add.inputs[0] is out else 0], add.outputs[0]
        found = constant_weight(value)
        if found is not None and found.array.dtype == np.int32 and result.shape == out.shape:
            given = np.broadcast_to(found.scale, found.array.shape).reshape(-1)
            wanted = scale.reshape(-1)
            same_size = wanted.size in (1, given.size)
            if same_size and np.all(np.abs(given - wanted) <= _BIAS_SLACK * np.abs(wanted)):
                array = found.array - found.zero.astype(np.int32)
                return (self._by_channel(array) if array.any() else None), None, result
        if value is None or self.node.op_type == "MatMul":
            return None, None, out
        return None, self._spread(write, value), out

    def _spread(self, write: Writer, value: ir.Value) -> ir.Value:
        """The bias in a shape that broadcasts into the output."""
        if self.node.op_type != "Conv":
            return value
        shape = self._by_channel(np.empty(value.shape[0])).shape
        target = write.constant(np.array(shape, np.int64), "shape")
        return write.op("Reshape", [value, target], ir.DataType.FLOAT, shape)

    def _by_channel(self, vector: np.ndarray) -> np.ndarray:
        """Numbers of output channels, or one for all, in a shape that broadcasts into the output."""
        if self.node.op_type != "Conv" or vector.size == 1:
            return vector.reshape(-1) if vector.size > 1 else vector.reshape(())
        return vector.reshape(1, -1, *[1] * (len(self.node.inputs[1].shape) - 2))


def _layer(node: ir.Node) -> _Layer | str | None:
    """The integer layer that ``node`` is, why it is none, or None where nothing is quantised."""
    x, weight = dequantised(node.inputs[0]), constant_weight(node.inputs[1])
    if weight is None:
        other = dequantised(node.inputs[1])
        if x is None and other is None:
            return None
        if x is not None and other is not None:
            return "both operands are activations: it stays float32 and dequantises them in passing"
        return "its weight is no constant of 8-bit integers; quantise weight and input of a layer together"
    if x is None:
        return "only its weight is quantised: its input is float32, or has scales by channel"
    if x.value.dtype != ir.DataType.UINT8 or weight.array.dtype.itemsize != 1:
        return f"integers of {weight.array.dtype} and {x.value.dtype}; the kernels multiply 8 bits"
    convolves = node.op_type == "Conv"
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0) or (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) != (
            1.0,
            1.0,
        ):
            return "transA, alpha and beta are for floats; export the layer without them"
        if attribute(node, "transB", 0):
            weight = weight.transposed((1, 0))
    elif not convolves and (weight.array.ndim != 2 or len(node.inputs[0].shape) < 2):
        return f"the weight has rank {weight.array.ndim}; integer layers take rows and a matrix"
    if convolves and not 3 <= weight.array.ndim <= 4:
        return f"integer layers convolve along 1 or 2 axes, this one along {weight.array.ndim - 2}"
    channels = 0 if convolves else 1
    shared = [d for axis, d in enumerate(weight.scale.shape) if axis != channels]
    if any(d != 1 for d in shared):
        return "the scales of its weight are not by output channel; quantise along that axis"
    return _Layer(node, x, weight)


def in_int8(centred: np.ndarray) -> list[np.ndarray]:
    """int8 weights whose sum is ``centred``: one, or two where values are beyond int8."""
    first = np.clip(centred, -128, 127)
    rest = centred - first
    return [part.astype(np.int8) for part in ((first, rest) if rest.any() else (first,))]


def _scaled(write: Writer, total: ir.Value, factor: np.ndarray, shape) -> ir.Value:
    real = write.op("Cast", [total], ir.DataType.FLOAT, shape, {"to": int(ir.DataType.FLOAT)})
    return write.op(
        "Mul", [real, write.constant(factor.astype(np.float32), "factor")], ir.DataType.FLOAT, shape
    )


def requantise(write: Writer, steps: ir.Value, made: Quantised) -> ir.Value:
    """``steps``, reals in units of the scale of ``made``, as its integers."""
    unit = Quantised(made.value, np.float32(1), made.zero, made.signed)
    return quantise(write, steps, unit, steps.shape)


def limited(write: Writer, integers: ir.Value, behind: Tail) -> ir.Value:
    """What Relu and Clip behind a layer let through, on the integers."""
    if (behind.least, behind.most) == (0, 255):
        return integers
    least, most = (write.constant(np.uint8(bound), "bound") for bound in (behind.least, behind.most))
    return write.op("Clip", [integers, least, most], ir.DataType.UINT8, integers.shape)
