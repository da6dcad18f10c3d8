"""Large inputs where the caller has them: no kernel wants more of an address than what allocators give."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest
from tests.conftest import cpu_features

ROWS, WIDTH, OUT = 1031, 272, 33
"""More than a MiB in, in rows of whole cache lines: a compiler would take every vector for aligned."""


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """x -> Relu -> MatMul -> y, and x -> Softmax -> z."""
    weight = np.random.default_rng(1).standard_normal((WIDTH, OUT)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
        helper.make_node("Softmax", ["x"], ["z"]),
        helper.make_node("MatMul", ["x", "w"], ["v"]),
    ]
    ports = {"x": WIDTH, "y": OUT, "z": WIDTH, "v": OUT}
    x, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, n]) for name, n in ports.items()
    )
    graph = helper.make_graph(nodes, "g", [x], outputs, [numpy_helper.from_array(weight, "w")])
    path = tmp_path_factory.mktemp("alignment") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("level, needs", [("v2", "sse4_2"), ("v3", "avx2"), ("v4", "avx512f")])
def test_large_inputs_at_16_bytes(network, ort_run, level, needs):
    if needs not in cpu_features():
        pytest.skip(f"this CPU has no {needs}")
    artifact = network.with_name(f"{level}.sparsec")
    compile_model(CompileRequest(str(network), str(artifact), f"x86:{level}", verify=False))
    memory = np.empty(ROWS * WIDTH * 4 + 128, np.uint8)
    start = -memory.ctypes.data % 64 + 16
    x = memory[start : start + ROWS * WIDTH * 4].view(np.float32).reshape(ROWS, WIDTH)
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    wanted = ort_run(network, {"x": x})
    with sparsec.load(artifact, threads=1) as model:
        found = model(x)
        for name, value in wanted.items():
            assert np.abs(found[name] - value).max() <= 1e-5 * np.abs(value).max() + 1e-6, name
