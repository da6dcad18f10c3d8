"""Resize along any axes: each output is a weighted sum of a few inputs, both known at compile time.

Coordinates, rounding and cubic coefficients follow the ONNX operator's text (Resize-19), in float32 as
ONNX Runtime computes them.
"""

import itertools

import numpy as np
import onnx_ir as ir
from tvm import relax, te

from sparsec.compiler.errors import CompileError


def resize(importer, node: ir.Node, inputs):
    text = {k: a.as_string() for k, a in node.attributes.items() if a.type == ir.AttributeType.STRING}
    mode = text.get("mode", "nearest")
    transform = text.get("coordinate_transformation_mode", "half_pixel")
    policy = text.get("keep_aspect_ratio_policy", "stretch")
    antialias = "antialias" in node.attributes and node.attributes["antialias"].as_int()
    if transform == "tf_crop_and_resize" or antialias or policy != "stretch":
        raise CompileError(
            f"Resize '{node.name}': crops, antialiasing and aspect-ratio policies have no kernel; "
            "export with a plain coordinate mode"
        )
    source = [int(d) for d in node.inputs[0].shape]
    target = [int(d) for d in node.outputs[0].shape]
    scales = axis_scales(node, source, target)
    tables = {
        axis: table(node, mode, transform, text, source[axis], target[axis], scales[axis])
        for axis in range(len(source))
        if target[axis] != source[axis] or scales[axis] != 1.0
    }
    if not tables:
        return relax.op.reshape(inputs[0], target)
    constants = [relax.const(array) for pair in tables.values() for array in pair]

    def weighted(data, *args):
        pairs = dict(zip(tables, zip(args[::2], args[1::2], strict=True), strict=True))
        taps = [int(pair[0].shape[1]) for pair in pairs.values()]

        def value(*index):
            total = None
            for choice in itertools.product(*map(range, taps)):
                at, weight = list(index), None
                for tap, (axis, (where, share)) in zip(choice, pairs.items(), strict=True):
                    at[axis] = where[index[axis], tap]
                    if mode != "nearest":
                        part = share[index[axis], tap]
                        weight = part if weight is None else weight * part
                term = data(*at) if weight is None else data(*at) * weight
                total = term if total is None else total + term
            return total

        return te.compute(target, value, name="resize")

    return importer.bb.emit_te(weighted, inputs[0], *constants, primfunc_name_hint="resize")


def axis_scales(node: ir.Node, source: list[int], target: list[int]) -> list[np.float32]:
    """The scale of every axis: as given, else the ratio of the sizes."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    ratios = [np.float32(t) / np.float32(s) for s, t in zip(source, target, strict=True)]
    if given is None or given.const_value is None or not given.const_value.size:
        return ratios
    axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else range(len(source))
    for axis, scale in zip(axes, given.const_value.numpy().reshape(-1), strict=True):
        ratios[axis] = np.float32(scale)
    return ratios


def table(node, mode, transform, text, size: int, out: int, scale: np.float32):
    """``(index [out, taps] int32, weight [out, taps] float32)`` of one axis."""
    x = coordinates(transform, size, out, scale)
    if mode == "nearest":
        rounding = {
            "round_prefer_floor": lambda v: np.ceil(v - np.float32(0.5)),
            "round_prefer_ceil": lambda v: np.floor(v + np.float32(0.5)),
            "floor": np.floor,
            "ceil": np.ceil,
        }[text.get("nearest_mode", "round_prefer_floor")]
        index = np.clip(rounding(x), 0, size - 1).astype(np.int32)[:, None]
        return index, np.ones_like(index, dtype=np.float32)
    floor = np.floor(x)
    ratio = x - floor
    if mode == "linear":
        offsets, weight = np.array([0, 1]), np.stack([1 - ratio, ratio], axis=1)
    else:
        a = np.float32(
            node.attributes["cubic_coeff_a"].as_float() if "cubic_coeff_a" in node.attributes else -0.75
        )
        offsets, weight = np.array([-1, 0, 1, 2]), cubic(ratio, a)
    index = floor[:, None].astype(np.int32) + offsets
    if "exclude_outside" in node.attributes and node.attributes["exclude_outside"].as_int():
        weight = np.where((index >= 0) & (index < size), weight, 0)
        weight = weight / weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1).astype(np.int32), weight.astype(np.float32)


def coordinates(transform: str, size: int, out: int, scale: np.float32) -> np.ndarray:
    """Where each output pixel lies in the input."""
    o, half = np.arange(out, dtype=np.float32), np.float32(0.5)
    if transform == "align_corners":
        return o * np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.zeros_like(o)
    if transform == "asymmetric":
        return o / scale
    if transform == "pytorch_half_pixel" and out == 1:
        return np.zeros_like(o)
    x = (o + half) / scale - half
    if transform == "half_pixel_symmetric":
        x = x + np.float32(size / 2 * (1 - out / (np.float32(size) * scale)))
    return x


def cubic(s: np.ndarray, a: np.float32) -> np.ndarray:
    """Keys' cubic convolution coefficients for the four neighbours at distance 1+s, s, 1-s, 2-s."""

    def near(d):
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d):
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return np.stack([far(1 + s), near(s), near(1 - s), far(2 - s)], axis=1)
