"""Protobuf messages of a model without its weights, for libraries written in C++.

A message cannot exceed 2 GiB and serialising weights is slow, so big initializers become plain inputs of
the message.  What is small stays: shape inference needs the values of shapes, axes and the like.
"""

import onnx
import onnx_ir as ir

BIG = 1024  # bytes; the tensors that describe shapes are far smaller


def serialize(
    model: ir.Model, outputs: list[ir.Value] | None = None
) -> tuple[onnx.ModelProto, dict[str, ir.Value]]:
    """``model`` as a message in which initializers above ``BIG`` bytes are inputs, and these by name."""
    graph = model.graph
    big = {name: v for name, v in graph.initializers.items() if _nbytes(v.const_value) > BIG}
    count = len(graph.inputs)
    kept = list(graph.outputs)
    try:
        for name, value in big.items():
            value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
            graph.initializers.pop(name)
            graph.inputs.append(value)
        if outputs is not None:
            graph.outputs[:] = outputs
        return ir.serde.serialize_model(model), big
    finally:
        while len(graph.inputs) > count:
            graph.inputs.pop()  # `del inputs[count:]` leaves the values marked as inputs (onnx_ir 1.1.0)
        for value in big.values():
            graph.register_initializer(value)
        if outputs is not None:
            graph.outputs[:] = kept


def _nbytes(tensor: ir.TensorProtocol) -> int:
    return 0 if tensor.dtype == ir.DataType.STRING else tensor.nbytes  # strings have no size of their own


def restore(proto: onnx.ModelProto, big: dict[str, ir.Value]) -> ir.Model:
    """The model of a converted message, with the weights that ``serialize`` left out."""
    model = ir.serde.deserialize_model(proto)
    for value in [v for v in model.graph.inputs if v.name in big]:
        model.graph.inputs.remove(value)
        value.const_value = big[value.name].const_value
        model.graph.register_initializer(value)
    return model
