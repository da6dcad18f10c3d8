"""What the tests of passes share: models from text, ONNX Runtime before and after, findings by node."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser

from sparsec.passes import run_pipeline


def _model(
    body: str,
    inputs: str = "float[2,3,4,5] x",
    outputs: str = "float[2,3,4,5] y",
    constants: str = "",
    opset: int = 18,
    dtype: np.dtype | type | None = None,
) -> ir.Model:
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}'
    )
    proto = parser.parse_model(text)
    if dtype is not None:
        _retype(proto.graph, np.dtype(dtype))
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{index}_{node.op_type}"
    return ir.from_proto(proto)


def _retype(graph: onnx.GraphProto, dtype: np.dtype) -> None:
    """float becomes ``dtype`` in inputs, outputs and initializers; the text format has no float16 numbers."""
    float32, code = onnx.TensorProto.FLOAT, onnx.helper.np_dtype_to_tensor_dtype(dtype)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == float32:
            value.type.tensor_type.elem_type = code
    for tensor in graph.initializer:
        if tensor.data_type == float32:
            array = onnx.numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


@pytest.fixture(scope="session")
def model_of():
    """``model_of(body, inputs, outputs, constants, opset, dtype)``: a model from ONNX text.

    Its nodes are named n0_Op, n1_Op, ... and its shapes inferred; float is read as ``dtype`` if given.
    """
    return _model


@pytest.fixture(scope="session")
def run_ort():
    """``run_ort(ir model or path, feeds)``: its first output in ONNX Runtime with default session options."""

    def run(model, feeds: dict[str, np.ndarray]) -> np.ndarray:
        source = ir.to_proto(model).SerializeToString() if isinstance(model, ir.Model) else str(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(source, options)
        return session.run(None, feeds)[0]

    return run


@pytest.fixture(scope="session")
def transform(run_ort):
    """``transform(model, passes, feeds)``: run the passes; (findings, output before, output after).

    The result is checked by onnx.checker, and runs in ONNX Runtime through its function bodies.
    """

    def run(model: ir.Model, feeds: dict[str, np.ndarray], passes=""):
        before = run_ort(model, feeds)
        findings = run_pipeline(model, passes)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        return findings, before, run_ort(model, feeds)

    return run


@pytest.fixture(scope="session")
def op_types():
    """``op_types(model)``: the operators of the main graph in order, without Constant."""
    return lambda model: [n.op_type for n in model.graph if n.op_type != "Constant"]


@pytest.fixture(scope="session")
def unchanged():
    """``unchanged(model)``: a text that is equal exactly when the main graph, functions and imports are."""
    return lambda model: ir.to_proto(model).SerializeToString(deterministic=True)
