"""Predicted errors against those of the network with its layers in their forms, run by ONNX Runtime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.compiler.calibration import read_batches
from sparsec.compiler.mixed.errors import error, form_errors, rounded
from sparsec.compiler.mixed.forms import PLAIN, Form, find_units
from sparsec.compiler.mixed.trial import make, taken_back
from sparsec.compiler.reference import run_reference
from sparsec.passes.nm_choice import Choice
from sparsec.passes.nm_layers import find_layers
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune.walk import Settings as Pruning
from sparsec.passes.quantize import Settings

PRUNING, QUANTISING = Pruning("magnitude", reconstruct=False), Settings(("minmax",), "nearest")
HALF = NM(2, 4, 16)


def silent(line):
    pass


@pytest.fixture(scope="module")
def measured(transformer):
    """The model, its batches, and the errors of its layers in each form."""
    model, data = transformer
    feeds = read_batches(data, model)
    units, forms, _ = find_units(model, ["bf16", "int8"], [HALF], Choice())
    return model, feeds, form_errors(model, units, forms, feeds, PRUNING, QUANTISING, silent)


def changed(model, feeds, chosen) -> float:
    """Squared change of the outputs, relative, of what a trial means."""
    trial = make(model, chosen, feeds, PRUNING, QUANTISING, silent)
    ends = [
        np.concatenate([run_reference(data, feed)["y"] for feed in feeds]).astype(np.float64)
        for data in (ir.to_proto(model).SerializeToString(), trial.meant)
    ]
    return float(np.square(ends[1] - ends[0]).sum() / np.square(ends[0]).sum())


@pytest.mark.parametrize("form", [Form("bf16"), Form("int8"), Form("bf16", HALF)], ids=str)
def test_errors_of_layers_add_up_to_that_of_the_model(measured, form):
    model, feeds, errors = measured
    chosen = dict.fromkeys(errors, form)
    predicted = sum(own[form] for own in errors.values())
    assert predicted / 3 < changed(model, feeds, chosen) < 3 * predicted


def test_one_layer_alone(measured):
    model, feeds, errors = measured
    for form in (Form("bf16"), Form("int8")):
        assert 0.4 < changed(model, feeds, {"y": form}) / errors["y"][form] < 2.5
    assert all(own[PLAIN] == 0 for own in errors.values())
    assert all(own[Form("bf16")] < own[Form("int8")] < own[Form("int8", HALF)] for own in errors.values())


def test_the_error_of_a_layer_is_that_of_numpy(transformer):
    layer = next(iter(find_layers(transformer[0])))
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((1, 40, 32)).astype(np.float32)
    x, w = rounded(Form("bf16"), rows, layer.weight.reshape(1, 32, 32), None)
    assert not (x.view(np.uint32) & 0xFFFF).any() and not (w.view(np.uint32) & 0xFFFF).any()
    assert np.abs(x - rows).max() <= 2.0**-8 * np.abs(rows).max()
    y = rows[0].astype(np.float64) @ layer.weight[:, 0].T
    off = x[0].astype(np.float64) @ w[0].T - y
    square = np.square(y - y.mean(axis=0)).sum()
    assert error(rows, layer, x, w, centred=False) == pytest.approx(np.square(off).sum() / square, rel=1e-3)
    off -= off.mean(axis=0)
    assert error(rows, layer, x, w) == pytest.approx(np.square(off).sum() / square, rel=1e-3)
    assert error(rows, layer, rows, layer.weight.reshape(1, 32, 32)) == 0


def test_layers_are_taken_back(measured):
    model, feeds, errors = measured
    integers = make(model, dict.fromkeys(errors, Form("int8")), feeds, PRUNING, QUANTISING, silent)
    wanted = run_reference(ir.to_proto(model).SerializeToString(), feeds[0])["y"]
    none = run_reference(taken_back(integers, {}).meant, feeds[0])["y"]
    np.testing.assert_allclose(none, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    some = taken_back(integers, {"m": Form("int8"), "y": Form("bf16")})
    assert some.precision == "bf16,int8" and some.bfloat16 == ("y",)
    nodes = {node.name: node for node in some.model.graph}
    kinds = {name: nodes[name].inputs[1].producer() for name in errors}
    assert [name for name, node in kinds.items() if node is not None] == ["m"]
    assert len(integers.outcomes) == 6 and not some.outcomes


def test_what_a_trial_means(convolutions):
    model, data = convolutions
    feeds = read_batches(data, model)
    chosen = {"a": Form("bf16"), "c": Form("int8"), "f": Form("fp32", NM(2, 4, 16))}
    trial = make(model, chosen, feeds, PRUNING, QUANTISING, silent)
    assert trial.precision == "bf16,int8" and trial.bfloat16 == ("a",)
    nodes = onnx.load_from_string(trial.meant).graph.node
    made = {node.name: node for node in nodes}
    by_output = {name: node.op_type for node in nodes for name in node.output}
    kinds = {name: by_output.get(made[name].input[0]) for name in "acf"}
    assert kinds["a"] == "Cast" and kinds["c"] == "DequantizeLinear" and made["f"].op_type == "Conv"
    weight = next(layer.weight for layer in find_layers(trial.model) if layer.node.name == "f")
    assert np.count_nonzero(weight[:16, 0, :16]) == 16 * 8, "its zeros are found again when it is compiled"
    assert {finding.node for finding in trial.findings if finding.applied} >= {"c", "f"}
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph), "the model given stays"
