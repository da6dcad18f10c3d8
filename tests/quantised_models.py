"""Models in QDQ form, written operator by operator."""

import numpy as np
import onnx


class Quantised:
    """Writes a model in QDQ form, operator by operator; values are names."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.inputs = [], [], []

    def input(self, shape, dtype=np.float32) -> str:
        name = f"input{len(self.inputs)}"
        code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(onnx.helper.make_tensor_value_info(name, code, shape))
        return name

    def constant(self, array) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes) -> str:
        name = f"{op_type}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op_type, inputs, [name], name=f"{name}_node", **attributes))
        return name

    def integers(self, real: str, scale: float, zero: int, dtype=np.uint8) -> str:
        return self.op("QuantizeLinear", real, *map(self.constant, (np.float32(scale), dtype(zero))))

    def reals(self, integers: str, scale, zero, axis: int | None = None) -> str:
        given = self.constant(np.asarray(scale, np.float32)), self.constant(zero)
        return self.op("DequantizeLinear", integers, *given, **({} if axis is None else {"axis": axis}))

    def around(self, real: str, scale: float, zero: int, dtype=np.uint8) -> str:
        """``real`` quantised and dequantised."""
        return self.reals(self.integers(real, scale, zero, dtype), scale, dtype(zero))

    def weight(self, shape, axis: int | None = None, scale: float = 0.02, zero: int = 0) -> str:
        """A random int8 weight, with a scale for each index of ``axis``; its largest values occur."""
        array = self.rng.integers(-128, 128, shape).astype(np.int8)
        array.flat[:2] = -128, 127
        if axis is None:
            return self.reals(self.constant(array), scale, np.int8(zero))
        scales = self.rng.uniform(0.5, 1.5, shape[axis]).astype(np.float32) * np.float32(scale)
        zeros = np.full(shape[axis], zero, np.int8)
        return self.reals(self.constant(array), scales, zeros, axis)

    def bias(self, size: int, x_scale: float, weight: str) -> str:
        """A random int32 bias in the scale of the sums that ``weight`` makes with an input of ``x_scale``."""
        made = next(node for node in self.nodes if node.output[0] == weight)
        scale = next(c for c in self.constants if c.name == made.input[1])
        scales = onnx.numpy_helper.to_array(scale) * np.float32(x_scale)
        array = self.rng.integers(-3000, 3000, size).astype(np.int32)
        zero = np.zeros(scales.shape, np.int32)
        return self.reals(self.constant(array), scales, zero, None if scales.ndim == 0 else 0)

    def model(self, *outputs: str) -> onnx.ModelProto:
        results = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = onnx.helper.make_graph(self.nodes, "g", self.inputs, results, self.constants)
        imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
        return onnx.shape_inference.infer_shapes(model)
