"""Findings survive JSON, and refuse to be empty."""

import json

import onnx_ir as ir
import pytest

from sparsec.passes import Finding, run_pipeline
from sparsec.passes.threshold import RecogniseThreshold

ONE = Finding("nm", "layer", "declined", "why not", "MatMul", "MatMul")


def test_json_round_trip():
    assert Finding.from_json(json.loads(json.dumps(ONE.to_json()))) == ONE
    assert not ONE.applied


@pytest.mark.parametrize(
    "change, message",
    [
        ({"outcome": "maybe"}, "outcome must be 'applied' or 'declined', got 'maybe'"),
        ({"reason": ""}, "nm gave no reason for layer; every decision has one"),
        ({"reason": 3}, "reason must be a string, got int"),
        ({"extra": "x"}, "keys must be .*got .*extra"),
    ],
)
def test_bad_json(change, message):
    with pytest.raises(ValueError, match=message):
        Finding.from_json({**ONE.to_json(), **change})


def test_a_pass_is_an_onnx_ir_pass(model_of):
    body = "a = Sub(x, t) y = Relu(a)"
    model = model_of(body, constants="float t = {0.3}")
    result = RecogniseThreshold()(model)
    assert isinstance(result, ir.passes.PassResult)
    assert result.modified and [f.applied for f in result.findings] == [True]
    again = RecogniseThreshold()(model)
    assert not again.modified and again.findings == ()


def test_pipeline_runs_recognisers_before_what_was_asked_for(model_of):
    """A shifted ReLU that is in the model is found first, so the inserter leaves it alone."""
    model = model_of("a = Sub(x, t) b = Relu(a) c = Exp(b) y = Relu(c)", constants="float t = {0.3}")
    findings = run_pipeline(model, "threshold{kind=soft,tau=0.1}")
    assert [f.pass_name for f in findings] == ["recognise-threshold", "threshold"]
    assert [f.node for f in findings] == ["n1_Relu", "n3_Relu"]
