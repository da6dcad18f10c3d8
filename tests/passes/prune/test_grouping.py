"""Channels put in order for a pattern, in whole models: the function stays and the error falls."""

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.compiler.prune import PruneRequest, prune_model

RNG = np.random.default_rng(0)


@pytest.fixture
def mlp(mlp_of):
    """x `[16, 24]` -> 32 -> Relu -> 20; rows of the first weight are of two kinds that want different
    columns, mixed, and of the second one's columns the first half matters. And its calibration data."""
    first = RNG.standard_normal((24, 32)) * 0.1
    kind = RNG.permutation(np.repeat([0, 1], 16))
    first += np.where((np.arange(24)[:, None] % 4 < 2) == (kind == 0), RNG.standard_normal((24, 32)), 0)
    second = RNG.standard_normal((32, 20)) * np.where(np.arange(32) < 16, 1, 0.1)[:, None]
    bias = RNG.standard_normal(32)
    x = RNG.standard_normal((320, 24)).astype(np.float32)
    proto, calib = mlp_of(first, bias, second, x)
    return ir.from_proto(proto), calib, x[:16]


def prune(mlp, ort_run, **asked):
    model, calib, x = mlp
    model = model.clone()
    request = PruneRequest(asked.pop("pattern", "2:4x16"), "sparsegpt", calib, min_size=0, **asked)
    findings, layers = prune_model(model, request, lambda line: None)
    dense = ort_run(ir.to_proto(mlp[0]).SerializeToString(), {"x": x})["y"]
    error = np.square(ort_run(ir.to_proto(model).SerializeToString(), {"x": x})["y"] - dense).sum()
    return error / np.square(dense).sum(), [f for f in findings if f.pass_name == "group"], layers


def test_both_layers_lose_less(mlp, ort_run):
    plain, none, _ = prune(mlp, ort_run, group=False)
    grouped, (told, output), layers = prune(mlp, ort_run)
    assert none == []
    assert grouped < 0.5 * plain
    assert told.applied and told.node == "first"
    assert told.reason.startswith("32 channels for first, second: output error ")
    assert not output.applied
    assert output.reason == "channels stay in order: y is an output of the model"
    assert {layer["node"] for layer in layers} == {"first", "second"}


def test_columns_alone_are_ordered_for_rows_of_their_own(mlp, ort_run):
    plain, _, _ = prune(mlp, ort_run, pattern="2:4", group=False)
    grouped, (told,), _ = prune(mlp, ort_run, pattern="2:4")
    assert told.applied and told.reason.startswith("32 channels for second: ")
    assert grouped < plain


def test_rows_are_grouped_for_an_unstructured_pattern_that_they_share(mlp, ort_run):
    plain, _, _ = prune(mlp, ort_run, pattern="50%x16", group=False)
    grouped, (told, _), _ = prune(mlp, ort_run, pattern="50%x16")
    assert told.applied and told.reason.startswith("32 channels for first: ")
    assert grouped < plain


def test_where_nothing_is_shared_there_is_nothing_to_order(mlp, ort_run):
    _, findings, _ = prune(mlp, ort_run, pattern="50%")
    assert findings == []


def test_only_the_layers_that_were_named_count(mlp, ort_run):
    _, (told,), _ = prune(mlp, ort_run, layers="second", pattern="2:4")
    assert told.reason.startswith("32 channels for second: ")
