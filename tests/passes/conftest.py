"""What the tests of passes share: models from text, ONNX Runtime before and after, findings by node; small
layers with correlated inputs, and what calibration sums up of them."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from sparsec.passes import run_pipeline
from sparsec.passes.prune import Moments, pose


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


@pytest.fixture
def layer():
    """``layer(rows, K, ...)`` -> (x `[samples, K]`, y `[samples, N]`, dense weight, bias)."""

    def make(outputs, inputs, samples=200, seed=0, noise=0.1):
        rng = np.random.default_rng(seed)
        mix = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs) + 0.5 * np.eye(inputs)
        x = rng.standard_normal((samples, inputs)) @ mix + rng.standard_normal(inputs)
        weight, bias = rng.standard_normal((outputs, inputs)), rng.standard_normal(outputs)
        y = x @ weight.T + bias + noise * rng.standard_normal((samples, outputs))
        return x, y, weight, bias

    return make


@pytest.fixture
def problem(layer):
    """``problem(N, K)``: the least-squares problem of such a layer, its bias free."""

    def make(outputs, inputs, seed=0, damping=0.01, free_bias=True):
        x, y, weight, bias = layer(outputs, inputs, seed=seed)
        moments = Moments.empty(inputs, outputs)
        moments.add(x, y)
        return pose(moments, weight, free_bias=free_bias, bias=bias, damping=damping)

    return make


@pytest.fixture
def mlp_of(tmp_path):
    """``mlp_of(first, bias, second, x)``: 16 rows -> first + bias -> Relu -> second, and ``x`` in a file."""

    def make(first, bias, second, x):
        nodes = [
            helper.make_node("MatMul", ["x", "P"], ["a"], name="first"),
            helper.make_node("Add", ["a", "b"], ["c"], name="bias"),
            helper.make_node("Relu", ["c"], ["d"], name="relu"),
            helper.make_node("MatMul", ["d", "Q"], ["y"], name="second"),
        ]
        ports = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16, size])]
            for name, size in (("x", len(first)), ("y", second.shape[1]))
        ]
        weights = {"P": first, "b": bias, "Q": second}
        constants = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()]
        graph = helper.make_graph(nodes, "g", *ports, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        np.savez(tmp_path / "calib.npz", x=x)
        return onnx.shape_inference.infer_shapes(model), str(tmp_path / "calib.npz")

    return make
