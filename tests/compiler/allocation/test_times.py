"""Seconds of layers and of the model: measured, remembered, and never more than dense."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.compiler.allocation import times
from sparsec.compiler.allocation.times import layer_times, model_seconds
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune import Unstructured

RNG = np.random.default_rng(0)
PATTERNS = [NM(2, 4, 16), NM(1, 4, 16)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(text_graph):
    proto = text_graph('(float["n",64] x) => (y) { a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }')
    for name in ("w1", "w2"):
        array = RNG.standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node, name in zip(proto.graph.node, ("one", "relu", "two"), strict=True):
        node.name = name
    return ir.from_proto(proto)


def test_layers(model, monkeypatch):
    lines = []
    wanted = {"one": PATTERNS, "two": PATTERNS[:1], "gone": PATTERNS}
    found = layer_times(model, wanted, {"x": (32, 64)}, lines.append)
    assert set(found) == {"one", "two"}
    assert set(found["one"]) == {"dense", "2:4x16", "1:4x16"} and set(found["two"]) == {"dense", "2:4x16"}
    assert all(0 < seconds <= row["dense"] for row in found.values() for seconds in row.values())
    assert lines == ["time the kernels of layer 1 of 3"], "equal layers are measured once"
    monkeypatch.setattr(times, "measure", lambda *_: pytest.fail("measured again"))
    assert layer_times(model, wanted, {"x": (32, 64)}, lines.append) == found


def test_unstructured(model):
    found = layer_times(model, {"one": [Unstructured(0.9), NM(1, 4, 16)]}, {"x": (32, 64)}, lambda line: None)
    assert set(found["one"]) == {"dense", "90%", "1:4x16"}
    found = layer_times(model, {"one": [Unstructured(0.5)]}, {"x": (32, 64)}, lambda line: None)["one"]
    assert found["50%"] == found["dense"], "a compilation runs it dense"


def test_the_mask_of_the_trial_weights():
    weight = RNG.standard_normal((32, 3, 3, 8)).astype(np.float32)
    masked = times.masked(weight, NM(2, 4, 16))
    kept = (masked != 0).reshape(2, 16, 3, 3, 2, 4)
    assert (kept == kept[:, :1]).all() and (kept.sum(-1) == 2).all()
    assert np.array_equal(masked[masked != 0], weight[masked != 0])


def test_whole_model(model):
    seconds = model_seconds(model, {"x": (32, 64)}, {"x": np.ones((32, 64), np.float32)})
    assert 0 < seconds < 1
