"""What torch's two exporters write for thresholds and for the entmax package is recognised, exactly."""

import contextlib
import logging
import os

import numpy as np
import onnx_ir as ir
import pytest
from onnxscript import optimizer

from sparsec.passes import run_pipeline

torch = pytest.importorskip("torch")
entmax = pytest.importorskip("entmax")
F = torch.nn.functional

CHANNELS = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)


class Net(torch.nn.Module):
    """``function(x)`` or ``function(x, t)`` with a learned threshold per channel."""

    def __init__(self, function, learned: bool):
        super().__init__()
        self.function = function
        self.t = torch.nn.Parameter(CHANNELS.clone()) if learned else None

    def forward(self, x):
        return self.function(x) if self.t is None else self.function(x, self.t)


# name: (operator, function, learned threshold, exporters that can)
BOTH, DYNAMO, SCRIPT = (False, True), (True,), (False,)
THRESHOLDS = {
    "softshrink": ("SoftThreshold", lambda x: F.softshrink(x, 0.3), False, BOTH),
    "hardshrink": ("HardThreshold", lambda x: F.hardshrink(x, 0.3), False, BOTH),
    "threshold": ("JumpRelu", lambda x: F.threshold(x, 0.3, 0.0), False, DYNAMO),
    "sign relu": ("SoftThreshold", lambda x: torch.sign(x) * F.relu(x.abs() - 0.3), False, BOTH),
    "sign relu, channels": ("SoftThreshold", lambda x, t: torch.sign(x) * F.relu(x.abs() - t), True, BOTH),
    "sign clamp": ("SoftThreshold", lambda x, t: torch.sign(x) * torch.clamp(x.abs() - t, min=0), True, BOTH),
    "softplus": ("SoftThreshold", lambda x, t: x.sign() * F.relu(x.abs() - F.softplus(t)), True, BOTH),
    "two relus": ("SoftThreshold", lambda x, t: F.relu(x - t) - F.relu(-x - t), True, BOTH),
    "shifted": ("ShiftedRelu", lambda x, t: F.relu(x - t), True, BOTH),
    "crelu": ("ClippedShiftedRelu", lambda x: torch.clamp(F.relu(x - 0.3), max=1.0), False, BOTH),
    "cst": ("ClippedSoftThreshold", lambda x, t: x.sign() * torch.clamp(x.abs() - t, 0, 1.0), True, SCRIPT),
    "where abs": ("HardThreshold", lambda x, t: torch.where(x.abs() > t, x, torch.zeros_like(x)), True, BOTH),
    "where": ("JumpRelu", lambda x, t: torch.where(x > t, x, 0.0), True, BOTH),
    "mask": ("JumpRelu", lambda x, t: x * (x > t), True, BOTH),
    "float mask": ("JumpRelu", lambda x, t: x * (x > t).float(), True, BOTH),
}
SPARSEMAX = {
    "last axis": (lambda x: entmax.sparsemax(x, -1), BOTH),
    "channels": (lambda x: entmax.sparsemax(x, 1), BOTH),
    "module": (lambda x: entmax.Sparsemax(dim=2)(x), BOTH),
    "k, all recomputed": (lambda x: entmax.sparsemax(x, -1, 3), SCRIPT),
    "k of the whole axis": (lambda x: entmax.sparsemax(x, -1, 5), BOTH),
    "mask": (lambda x: entmax.sparsemax(x.masked_fill(x < -0.5, float("-inf")), -1), BOTH),
}


ENTMAX = {
    "sort": ("Entmax", lambda x: entmax.entmax15(x, -1), BOTH),
    "sort, channels": ("Entmax", lambda x: entmax.entmax15(x, 1), BOTH),
    "sort, k": ("Entmax", lambda x: entmax.entmax15(x, -1, 3), SCRIPT),
    "mask": ("Entmax", lambda x: entmax.entmax15(x.masked_fill(x < -0.5, float("-inf")), -1), BOTH),
    "module": ("Entmax", lambda x: entmax.Entmax15(dim=2)(x), DYNAMO),
    # the older exporter fails on entmax_bisect
    "halving": ("Entmax", lambda x: entmax.entmax_bisect(x, 1.3, n_iter=24), DYNAMO),
    "halving, channels": ("Entmax", lambda x: entmax.entmax_bisect(x, 1.25, dim=1), DYNAMO),
    "halving, no sum": ("Entmax", lambda x: entmax.entmax_bisect(x, ensure_sum_one=False), DYNAMO),
    "halving, tensor": ("Entmax", lambda x: entmax.entmax_bisect(x, torch.tensor([[1.7]])), DYNAMO),
    "alpha 2": ("Sparsemax", lambda x: entmax.entmax_bisect(x, 2.0, n_iter=30), DYNAMO),
    "sparsemax_bisect": ("Sparsemax", lambda x: entmax.sparsemax_bisect(x), DYNAMO),
}
#: Why others stay as they are, one finding each.
NOT_ENTMAX = {
    "few halvings": (
        lambda x: entmax.entmax_bisect(x, 1.25, n_iter=8),
        "halves only 8 times, which is not entmax; 24 are enough for float32",
    ),
    "alpha 3": (
        lambda x: entmax.entmax_bisect(x, 3.0, n_iter=24),
        "alpha is 3; kernels take those from 1.01 to 2",
    ),
    "alpha of each": (
        lambda x: entmax.entmax_bisect(x, torch.tensor([1.2, 1.4, 1.6]).reshape(3, 1, 1), n_iter=24),
        "alpha differs between slices; one number is required",
    ),
    "normmax": (
        lambda x: entmax.normmax_bisect(x, 1.5, n_iter=24),
        "which half is taken does not depend on whether the shares sum to 1",
    ),
}


def export(function, learned: bool, dynamo: bool, x, path) -> ir.Model:
    net = Net(function, learned).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        if dynamo:
            torch.onnx.export(net, (x,), dynamo=True, verbose=False).save(path)
        else:
            torch.onnx.export(net, (x,), path, dynamo=False, opset_version=18)
    model = ir.load(path)
    optimizer.optimize(model)
    return model


# The dynamo exporter takes a second or more a model; these stay in the quick suite.
QUICK = ("softshrink", "hardshrink", "threshold", "last axis", "sort", "halving")


def cases(table):
    for name, (*_, exporters) in table.items():
        for dynamo in exporters:
            marks = [pytest.mark.slow] if dynamo and name not in QUICK else []
            yield pytest.param(name, dynamo, id=f"{name}-{'dynamo' if dynamo else 'script'}", marks=marks)


def probe() -> np.ndarray:
    """[2, 3, 4, 5] on a grid that holds the thresholds of all channels."""
    rng = np.random.default_rng(0)
    return (rng.integers(-30, 30, (2, 3, 4, 5)) / np.float32(20)).astype(np.float32)


pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.mark.parametrize("name, dynamo", cases(THRESHOLDS))
def test_threshold(name, dynamo, tmp_path, transform, op_types):
    op, function, learned, _ = THRESHOLDS[name]
    x = probe()
    model = export(function, learned, dynamo, torch.tensor(x), tmp_path / "model.onnx")
    feeds = {model.graph.inputs[0].name: x}
    (finding,), before, after = transform(model, feeds)
    assert op_types(model) == [op] and finding.applied
    np.testing.assert_array_equal(before, after)
    args = (torch.tensor(x), CHANNELS) if learned else (torch.tensor(x),)
    np.testing.assert_allclose(after, function(*args).numpy(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name, dynamo", cases(SPARSEMAX))
def test_sparsemax(name, dynamo, tmp_path, transform, op_types, run_ort):
    function, _ = SPARSEMAX[name]
    # zeros have the largest support, so a tracer records the recomputation of the k form
    model = export(function, False, dynamo, torch.zeros(2, 3, 4, 5), tmp_path / "model.onnx")
    x = probe()
    x[0, 0, 0] = 0
    x[0, 0, 1] = [9, 0, 0, 0, 0]
    name_of_x = model.graph.inputs[0].name
    findings, before, after = transform(model, {name_of_x: x})
    assert [o for o in op_types(model) if o not in ("Less", "Where", "Cast")] == ["Sparsemax"]
    assert [f.after for f in findings if f.pass_name == "recognise-sparsemax"] == ["ai.sparsec.Sparsemax"]
    np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(after, function(torch.tensor(x)).numpy(), rtol=0, atol=3e-7)
    ir.save(model, tmp_path / "saved.onnx")
    np.testing.assert_array_equal(run_ort(tmp_path / "saved.onnx", {name_of_x: x}), after)


def test_k_form_traced_without_recomputation_is_declined(tmp_path, transform, unchanged):
    """An example with small supports makes the tracer leave the recomputation out: another function."""
    example = torch.tensor([[9.0, 0, 0, 0, 0, 0]])
    model = export(lambda x: entmax.sparsemax(x, -1, 2), False, False, example, tmp_path / "model.onnx")
    was = unchanged(model)
    (finding,), _, _ = transform(model, {model.graph.inputs[0].name: np.zeros((1, 6), np.float32)})
    assert "sorts only the 2 largest of 6 and never recomputes" in finding.reason
    assert unchanged(model) == was


def test_k_form_recomputed_with_another_partial_sort_is_declined(tmp_path, transform, unchanged):
    example = torch.tensor([[9.0, 8.9, 8.8, 0, 0, 0, 0, 0, 0]] * 3)
    model = export(lambda x: entmax.sparsemax(x, -1, 2), False, False, example, tmp_path / "model.onnx")
    was = unchanged(model)
    (finding,), _, _ = transform(model, {model.graph.inputs[0].name: np.zeros((3, 9), np.float32)})
    assert "sorts the 2 and then the 4 largest of 9, which is not sparsemax" in finding.reason
    assert unchanged(model) == was


def test_k_form_recomputed_for_one_slice_is_declined(tmp_path, unchanged):
    """With one such slice in the example the exporter writes a Reshape to a scalar."""
    example = torch.tensor([[0.3, 0.2, 0.1], [9, 0, 0]])
    model = export(lambda x: entmax.sparsemax(x, -1, 2), False, False, example, tmp_path / "model.onnx")
    was = unchanged(model)
    (finding,) = run_pipeline(model)  # ONNX Runtime refuses such a graph
    assert "recomputes exactly one slice, as in the example traced" in finding.reason
    assert unchanged(model) == was


@pytest.mark.parametrize("name, dynamo", cases(ENTMAX))
def test_entmax(name, dynamo, tmp_path, transform, op_types):
    op, function, _ = ENTMAX[name]
    model = export(function, False, dynamo, torch.zeros(2, 3, 4, 5), tmp_path / "model.onnx")
    x = probe()
    x[0, 0, 0], x[0, 0, 1] = 0, [9, 0, 0, 0, 0]
    findings, before, after = transform(model, {model.graph.inputs[0].name: x})
    assert [o for o in op_types(model) if o not in ("Less", "Where", "Cast")] == [op]
    (finding,) = [f for f in findings if f.pass_name == "recognise-entmax"]
    assert finding.applied and finding.after == f"ai.sparsec.{op}"
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-6)
    want = function(torch.tensor(x, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(after, want, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_ENTMAX)
def test_what_is_not_entmax_is_declined(name, tmp_path, transform, unchanged):
    function, reason = NOT_ENTMAX[name]
    model = export(function, False, True, torch.zeros(2, 3, 4, 5), tmp_path / "model.onnx")
    was = unchanged(model)
    findings, _, _ = transform(model, {model.graph.inputs[0].name: probe()})
    assert [f.reason for f in findings if f.pass_name == "recognise-entmax"] == [reason]
    assert unchanged(model) == was


def test_threshold_with_another_value_is_declined(tmp_path, transform):
    x = probe()
    model = export(lambda x: F.threshold(x, 0.3, 7.0), False, True, torch.tensor(x), tmp_path / "model.onnx")
    (finding,), _, _ = transform(model, {model.graph.inputs[0].name: x})
    assert finding.reason == "inputs under the threshold become 7, not 0"
