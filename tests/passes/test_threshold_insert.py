"""Thresholds on request: where they go, what they compute, what is left alone and why."""

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes import parse_pipeline, run_pipeline

X = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
AFTER_RELU = {
    "soft": lambda r: np.maximum(r - np.float32(0.25), 0),
    "shifted": lambda r: np.maximum(r - np.float32(0.25), 0),
    "hard": lambda r: np.where(r > 0.25, r, 0),
    "jump": lambda r: np.where(r > 0.25, r, 0),
}


@pytest.mark.parametrize("kind", AFTER_RELU)
def test_at_relu_is_the_threshold_of_its_result(kind, model_of, transform):
    model = model_of("y = Relu(x)", "float[4,8] x", "float[4,8] y")
    (finding,), before, after = transform(model, {"x": X}, f"threshold{{kind={kind},tau=0.25}}")
    assert finding.applied and finding.reason == f"asked for; {kind}, tau = 0.25"
    np.testing.assert_array_equal(before, np.maximum(X, 0))
    np.testing.assert_array_equal(after, AFTER_RELU[kind](np.maximum(X, 0)))


def test_clipped(model_of, transform, op_types):
    model = model_of("y = Relu(x)", "float[4,8] x", "float[4,8] y")
    (finding,), _, after = transform(model, {"x": X}, "threshold{kind=soft,tau=0.25,m=0.5}")
    assert op_types(model) == ["ClippedShiftedRelu"]
    assert finding.reason == "asked for; soft, tau = 0.25, m = 0.5"
    np.testing.assert_array_equal(after, np.clip(X - np.float32(0.25), 0, 0.5))


LINEAR = "h = Exp(x) a = MatMul(h, w) b = MatMul(h, w) y = Add(a, b)"
WEIGHT = "float[8,4] w = {" + ", ".join(str(i % 5 - 2) for i in range(32)) + "}"


def test_at_linear_shares_one_threshold(model_of, transform, op_types):
    model = model_of(LINEAR, "float[4,8] x", "float[4,4] y", WEIGHT)
    findings, before, after = transform(model, {"x": X}, "threshold{kind=hard,tau=0.9,at=linear}")
    mine = [f for f in findings if f.pass_name == "threshold"]
    assert [f.node for f in mine] == ["n1_MatMul", "n2_MatMul"]
    assert op_types(model).count("HardThreshold") == 1
    w = np.array([i % 5 - 2 for i in range(32)], np.float32).reshape(8, 4)
    h = np.exp(X)
    np.testing.assert_allclose(after, 2 * (np.where(h > 0.9, h, 0) @ w), rtol=1e-5, atol=1e-5)
    assert not np.allclose(before, after)


def test_at_linear_takes_gemm_and_conv(model_of, transform, op_types):
    body = "h = Tanh(x) c = Conv <pads=[1,1,1,1]> (h, k) f = Flatten(c) y = Gemm(f, w)"
    constants = (
        "float[2,3,3,3] k = {"
        + ", ".join(["0.5"] * 54)
        + "}, float[40,2] w = {"
        + ", ".join(["1"] * 80)
        + "}"
    )
    model = model_of(body, outputs="float[2,2] y", constants=constants)
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
    transform(model, {"x": x}, "threshold{kind=soft,tau=0.1,at=linear}")
    assert op_types(model) == ["Tanh", "SoftThreshold", "Conv", "Flatten", "SoftThreshold", "Gemm"]


def test_declined_inputs(model_of, unchanged):
    body = "a = MatMul(x, w) t = Relu(a) y = MatMul(t, v)"
    constants = WEIGHT + ", float[4,2] v = {1, 2, 3, 4, 5, 6, 7, 8}"
    model = model_of(body, "float[4,8] x", "float[4,2] y", constants)
    (pass_,) = parse_pipeline("threshold{kind=soft,tau=0.1,at=linear}")
    first, second = pass_.run(model)
    assert (first.outcome, first.reason) == ("declined", "its input is an input of the model")
    assert second.applied
    was = unchanged(model)
    again = pass_.run(model)
    assert "its input is thresholded already, by SoftThreshold" in again[1].reason
    assert unchanged(model) == was


@pytest.mark.parametrize(
    "at, wanted", [("relu", "Relu"), ("linear", "MatMul, Gemm or Conv with constant weights")]
)
def test_nothing_to_do_is_said(at, wanted, model_of, unchanged):
    model = model_of("a = Exp(x) y = MatMul(a, a)", "float[4,4] x", "float[4,4] y")
    was = unchanged(model)
    (finding,) = run_pipeline(model, f"threshold{{kind=soft,tau=0.1,at={at}}}")
    assert (finding.outcome, finding.node, finding.reason) == ("declined", "g", f"has no {wanted}")
    assert unchanged(model) == was


@pytest.mark.parametrize(
    "at, body", [("relu", "y = Relu(x)"), ("linear", "h = Identity(x) y = MatMul(h, w)")]
)
def test_integers_and_unknown_types(at, body, model_of):
    model = model_of(body, "int32[4,4] x", "int32[4,4] y", "int32[4,4] w = {" + ", ".join(["1"] * 16) + "}")
    (pass_,) = parse_pipeline(f"threshold{{kind=soft,tau=0.1,at={at}}}")
    (finding,) = pass_.run(model)
    assert finding.reason == "its input is INT32, a float type is required"
    for value in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs)):
        value.type = None
    (finding,) = pass_.run(model)
    assert finding.reason == "its input is of unknown type; run shape inference, a float type is required"


def test_names_do_not_collide(model_of, transform):
    body = "h_thresholded = Exp(x) h = Tanh(h_thresholded) y = MatMul(h, w)"
    model = model_of(body, "float[4,8] x", "float[4,4] y", WEIGHT)
    transform(model, {"x": X}, "threshold{kind=soft,tau=0.1,at=linear}")
    assert "h_thresholded_1" in [o.name for n in model.graph for o in n.outputs]
    assert isinstance(model, ir.Model)
