"""Sparse plus low rank: found in what exporters write, the sum as before, and what is no such term stays."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from sparsec.passes import run_pipeline

RNG = np.random.default_rng(0)


def sparse(outputs, inputs, n=2, m=4):
    mask = np.argsort(np.argsort(RNG.random((outputs, inputs // m, m)))) < n
    return (mask.reshape(outputs, inputs) * RNG.standard_normal((outputs, inputs))).astype(np.float32)


class Slope(nn.Module):
    """An N:M linear layer with a low-rank adapter, scaled as LoRA has it."""

    def __init__(self, inputs=32, outputs=48, rank=3, bias=True, scale=1.0, flip=False):
        super().__init__()
        self.main = nn.Linear(inputs, outputs, bias=bias)
        self.right, self.left = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        self.scale, self.flip = scale, flip
        with torch.no_grad():
            self.main.weight.copy_(torch.from_numpy(sparse(outputs, inputs)))

    def forward(self, x):
        low = self.left(self.right(x))
        if self.scale != 1.0:
            low = low * self.scale
        return torch.relu(low + self.main(x) if self.flip else self.main(x) + low)


@pytest.fixture
def recognise(tmp_path, ort_run):
    """Exports, runs the recognisers; the outputs stay -> (findings of this pass, operators of the model)."""

    def run(network, *shape):
        x = torch.randn(shape)
        torch.onnx.export(
            network.eval(), (x,), str(tmp_path / "m.onnx"), input_names=["x"], output_names=["y"],
            opset_version=18, dynamo=False,
        )  # fmt: skip
        model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx")))
        feeds = {"x": x.numpy()}
        before = ort_run(ir.to_proto(model).SerializeToString(), feeds)["y"]
        findings = [f for f in run_pipeline(model, "") if f.pass_name == "recognise-low-rank"]
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        after = ort_run(ir.to_proto(model).SerializeToString(), feeds)["y"]
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
        return findings, [node.op_type for node in model.graph if node.op_type != "Constant"], model

    return run


FORMS = {
    "3-D": ({}, (2, 5, 32)),
    "2-D, a Gemm": ({}, (5, 32)),
    "no bias": ({"bias": False}, (2, 5, 32)),
    "2-D, no bias": ({"bias": False}, (5, 32)),
    "scaled": ({"scale": 0.5}, (2, 5, 32)),
    "the term first": ({"flip": True}, (2, 5, 32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_becomes_one_operator(form, recognise):
    torch.manual_seed(0)
    options, shape = FORMS[form]
    network = Slope(**options)
    (finding,), operators, model = recognise(network, *shape)
    assert finding.applied
    assert finding.reason == "a term of rank 3 on [32, 48] joins the product of the same input"
    bias = [] if options.get("bias") is False else ["Add"]
    assert operators == ["NMMatMulLowRank", *bias, "Relu"]
    (node,) = (node for node in model.graph if node.op_type == "NMMatMulLowRank")
    _, weight, right, left = (v.const_value.numpy() if v.const_value else None for v in node.inputs)
    np.testing.assert_array_equal(weight.T, network.main.weight.detach())
    np.testing.assert_array_equal(right.T, network.right.weight.detach())
    scaled = network.left.weight.detach() * options.get("scale", 1.0)
    np.testing.assert_allclose(left.T, scaled, rtol=1e-6)
    assert [node.attributes[k].value for k in ("n", "m", "block")] == [2, 4, 1]


def test_a_rank_that_is_none_is_told(recognise):
    (finding,), operators, _ = recognise(Slope(rank=16), 2, 5, 32)
    assert not finding.applied and "NMMatMulLowRank" not in operators
    assert finding.reason == "its low-rank term stays beside it: rank 16 is no low one for [32, 48]"


def test_a_bias_inside_the_term_is_told(recognise):
    network = Slope()
    network.right = nn.Linear(32, 3)
    (finding,), operators, _ = recognise(network, 5, 32)
    assert not finding.applied and "NMMatMulLowRank" not in operators
    assert finding.reason.endswith("the inner product has a bias")


class Other(Slope):
    def forward(self, x):
        return torch.relu(self.main(x) + self.left(self.right(torch.tanh(x))))


def test_a_term_of_another_input_is_none(recognise):
    findings, operators, _ = recognise(Other(), 2, 5, 32)
    assert findings == [] and "NMMatMulLowRank" not in operators
