"""``sparsec explain``: one paragraph for each decision, and a bound on the gain."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sparsec.compiler import choices

NATIVE = ("--target", "native")


def test_a_pattern_and_its_measured_gain(call, digits):
    result = call("explain", digits, *NATIVE)
    assert result.exit_code == 0, result.stderr
    assert "Conv, weight 64x32x3x3" in result.stdout
    assert "2:4x16: keeps 50.0 % of the weights" in result.stdout
    assert "x the time of dense" in result.stdout
    assert "2 other layers with constant weights: dense" in result.stdout


def test_the_bound_on_the_gain_is_counted(call, digits):
    """64x32x3x3 on 8x8 and 48x64x3x3 on 4x4 keep half; 32x1x3x3 on 8x8 and 10x192 keep all."""
    found = json.loads(call("explain", digits, *NATIVE, "--json").stdout)
    work = sorted((layer["multiply_adds"], layer["kept"]) for layer in found["layers"].values())
    sizes = [(10 * 192, 1.0), (32 * 9 * 64, 1.0), (48 * 64 * 9 * 16, 0.5), (64 * 32 * 9 * 64, 0.5)]
    assert work == sizes
    total, kept = sum(n for n, _ in sizes), sum(n * share for n, share in sizes)
    assert f"at most {total / kept:.2f}x faster" in call("explain", digits, *NATIVE).stdout


def test_a_dense_model(call, digits):
    result = call("explain", digits.with_name("dense.onnx"), *NATIVE)
    assert "No sparsity was found" in result.stdout


@pytest.mark.parametrize("spec", ["threshold{kind=soft,tau=0.1}"])
def test_passes_can_be_tried(call, digits, spec):
    result = call("explain", digits, *NATIVE, "--passes", spec)
    assert "threshold: asked for; soft, tau = 0.1" in result.stdout


def two_of_four(inputs, outputs, seed=0):
    """``[inputs, outputs]``: two of each four inputs, drawn anew for each output; a tail stays whole."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((inputs, outputs)).astype(np.float32)
    groups = weight[: inputs // 4 * 4].reshape(-1, 4, outputs)
    np.put_along_axis(groups, rng.random(groups.shape).argsort(axis=1)[:, :2], 0, axis=1)
    return weight


def near_miss():
    weight = two_of_four(4096, 10)
    weight[:8, 0] = 1
    return weight


FOUR_REASONS = {
    "K is no multiple of 4": (
        two_of_four(62, 64),
        "the last 2 of 62 inputs make no group of 4 and stay dense: with 60 or 64 inputs none would",
    ),
    "99.98 % right": (
        near_miss(),
        "outliers among them; 99.98 % of groups are 2:4; 2 groups of 10,240 have up to 4 non-zeros: "
        "prune them with nm{n=2,m=4,block=1} or retrain",
    ),
    "the wrong axis": (
        two_of_four(64, 96).T.copy(),
        "declined, the pattern 2:4 runs along output channels; it must run along the input channels: "
        "prune along dim 1 of a torch weight [out, in]",
    ),
    "too small": (two_of_four(16, 16), "too short for a sparse kernel to gain: leave it dense"),
}


@pytest.mark.parametrize("case", FOUR_REASONS)
def test_why_a_two_of_four_model_does_not_gain(case, call, tmp_path, monkeypatch):
    weight, sentence = FOUR_REASONS[case]
    if case == "too small":  # a fixed measurement: which kernel wins at this size is for the machine to say
        monkeypatch.setattr(
            choices, "_times", lambda layers, *_: dict.fromkeys(layers, (1e-06, 2e-06, "measured"))
        )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    ports = [
        helper.make_tensor_value_info("x", 1, [3, len(weight)]),
        helper.make_tensor_value_info("y", 1, None),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    opset = [helper.make_opsetid("", 20)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    assert sentence in call("explain", path, *NATIVE).stdout
