"""``sparsec compile --state``: states are no ports any more, and every other command knows them."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


@pytest.fixture
def sums(tmp_path):
    """``y = present = past + x``."""
    x, past, present, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 5])
        for name in ("x", "past", "present", "y")
    )
    nodes = [
        helper.make_node("Add", ["past", "x"], ["present"]),
        helper.make_node("Relu", ["present"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "sums", [x, past], [present, y])
    path = tmp_path / "sums.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_road_of_a_state(call, sums):
    artifact = sums.with_suffix(".sparsec")
    made = call("compile", sums, "--target", "native", "--state", "past=present")
    assert made.exit_code == 0 and "of present's scale" in made.stdout
    assert "state   past  float32  1 x 5" in call("inspect", artifact).stdout
    assert "<td>state</td><td>past</td>" in call("inspect", artifact, "--html").stdout
    assert "output present: " in call("verify", artifact, "--model", sums).stdout
    np.save(sums.parent / "x.npy", np.full((1, 5), -2, "float32"))
    run = call("run", artifact, "--input", f"x={sums.parent / 'x.npy'}", "--json")
    assert [entry["name"] for entry in json.loads(run.stdout)] == ["y"]


def test_wrong_states(call, one_line, sums):
    assert call("compile", sums, "--state", "past").exit_code == 2
    assert call("compile", sums, "--state", "past=present", "--state", "past=y").exit_code == 2
    result = call("compile", sums, "--state", "past=presnt")
    assert result.exit_code == 1
    assert "no output 'presnt'; its outputs: present, y. Did you mean 'present'?" in one_line(result)
