"""Single layers of int8 as ONNX files in QDQ form: bytes in and out, so that a time is the layer's alone."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .prune import Variant

#: Rows, inputs, outputs.
GEMMS = [
    (128, 768, 3072),
    (128, 3072, 768),
    (512, 1024, 1024),
    (16, 768, 3072),
    (4, 4096, 4096),
    (1, 4096, 4096),
]
#: Channels in and out, height and width, kernel: those of ResNet-50.
CONVS = [
    (64, 64, 56, 3), (128, 128, 28, 3), (256, 256, 14, 3), (512, 512, 7, 3),
    (64, 256, 56, 1), (1024, 256, 14, 1),
]  # fmt: skip
VARIANTS = ("dense", "2:4x32", "1:4x32")
#: Zero points in the middle, and scales by which sums of random products fill the range.
ZERO, SCALE = 121, 0.02


def gemm(rows: int, inputs: int, outputs: int, variant: Variant) -> onnx.ModelProto:
    weight, scales = _weight(outputs, 1, inputs, variant)
    constants = {"w": weight[:, 0].T, "w_scale": scales}
    node = helper.make_node("MatMul", ["x", "v"], ["z"])
    return _model(node, constants, 1, (rows, inputs), (rows, outputs))


def conv(inputs: int, outputs: int, size: int, kernel: int, variant: Variant) -> onnx.ModelProto:
    weight, scales = _weight(outputs, kernel**2, inputs, variant)
    weight = weight.transpose(0, 2, 1).reshape(outputs, inputs, kernel, kernel)
    node = helper.make_node("Conv", ["x", "v"], ["z"], pads=[kernel // 2] * 4)
    shapes = ((1, channels, size, size) for channels in (inputs, outputs))
    return _model(node, {"w": weight, "w_scale": scales}, 0, *shapes)


def _weight(outputs: int, taps: int, inputs: int, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """int8 ``[outputs, taps, inputs]`` that holds the pattern, and a scale for each output."""
    rng = np.random.default_rng(1)
    weight = rng.integers(-127, 128, (outputs, taps, inputs)).astype(np.int8)
    weight *= variant.mask(weight.astype(np.float32))
    scales = rng.uniform(0.5, 1.5, outputs) / (73 * (taps * inputs * variant.kept) ** 0.5)
    return weight, scales.astype(np.float32)


def _model(node, constants: dict, axis: int, x_shape, y_shape) -> onnx.ModelProto:
    constants |= {"scale": np.float32(SCALE), "zero": np.uint8(ZERO)}
    constants["w_zero"] = np.zeros(len(constants["w_scale"]), np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["v"], axis=axis),
        node,
        helper.make_node("QuantizeLinear", ["z", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("bytes", TensorProto.UINT8, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, y_shape)],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made
