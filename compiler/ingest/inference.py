"""Shapes and dtypes by onnx's inference, with the values of shape arithmetic propagated."""

import onnx
import onnx_ir as ir

from sparsec.compiler.ingest import light
from sparsec.compiler.ingest.errors import IngestError, one_line


def infer(model: ir.Model) -> None:
    """Fill in what is not known yet of the values of the main graph; contradictions are errors."""
    proto, _ = light.serialize(model)
    try:
        inferred = _infer(proto, True)
    except Exception:
        # Propagating values fails on names that two nested graphs share (onnx 1.23: "Data for input 0
        # already exists"); the constants that are folded between the rounds make up for it.
        try:
            inferred = _infer(proto, False)
        except Exception as error:  # bare C++ exceptions
            raise IngestError(
                f"the model contradicts itself, by onnx's shape inference: {one_line(error)}"
            ) from error
    types = {v.name: v.type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            found = types.get(value.name)
            if found is None:
                continue
            if value.type is None or found.HasField("tensor_type"):
                value.type = ir.serde.deserialize_type_proto_for_type(found)
            shape = ir.serde.deserialize_type_proto_for_shape(found)
            if shape is not None and (value.shape is None or not value.shape.is_static()):
                value.shape = shape


def _infer(proto: onnx.ModelProto, data_prop: bool) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=data_prop)
