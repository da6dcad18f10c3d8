"""The whole search on a small network with made-up times: budgets are kept on data that it has not seen."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from sparsec.compiler.allocation import search
from sparsec.compiler.allocation.budget import Budget
from sparsec.compiler.allocation.search import allocate
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import form
from sparsec.compiler.prune import PruneRequest
from sparsec.passes.nm_pattern import NM

RNG = np.random.default_rng(0)
PATTERNS = [NM(3, 4, 16), NM(2, 4, 16), NM(1, 4, 16)]
REST = 10.0  # seconds of the model outside its layers


@pytest.fixture(autouse=True)
def made_up_times(monkeypatch):
    """A layer takes as long as it has weights left, 20 s when dense; the model takes 10 s beside them."""

    def layer_times(model, options, shapes, log):
        kept = {str(p): 20.0 * p.n / p.m for patterns in options.values() for p in patterns}
        return {name: {"dense": 20.0} | {str(p): kept[str(p)] for p in own} for name, own in options.items()}

    monkeypatch.setattr(search, "layer_times", layer_times)
    monkeypatch.setattr(search, "model_seconds", lambda *_: REST + 3 * 20.0)


@pytest.fixture
def model(text_graph):
    """Three layers; the inputs of the first lie near a plane of 16 dimensions: it is easy to prune."""
    proto = text_graph(
        '(float["n",64] x) => (y) { a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) '
        "y = MatMul(d, w3) }"
    )
    for name in ("w1", "w2", "w3"):
        array = RNG.standard_normal((64, 64)).astype(np.float32) / 8
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"make_{node.output[0]}"
    made = ir.from_proto(proto)
    form.infer(made)
    return made


@pytest.fixture
def calib(tmp_path):
    path = tmp_path / "calib.npz"
    x = RNG.standard_normal((512, 16)) @ RNG.standard_normal((16, 64))
    np.savez(path, x=(x + 0.05 * RNG.standard_normal(x.shape)).astype(np.float32))
    return path


def run(model, x):
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def allocated(model, calib, budget, metric=None):
    request = PruneRequest(pattern="", method="wanda", calib=str(calib))
    return allocate(model, request, PATTERNS, budget, metric, lambda line: None)


def test_latency_is_reached_with_the_least_error(model, calib):
    made = allocated(model, calib, Budget(latency=0.6))
    plan = made.plan
    assert plan["predicted_ms"] <= 0.6 * plan["dense_ms"]
    weights = {name: NM.parse(p) for name, p in plan["patterns"].items()}
    left = sum(weights[n].n / 4 if n in weights else 1 for n in ("make_a", "make_c", "make_y"))
    assert plan["predicted_ms"] == pytest.approx(1e3 * (REST + 20 * left))
    easiest = weights["make_a"].n
    assert all(easiest <= weights[n].n if n in weights else True for n in ("make_c", "make_y"))
    latencies = [p["latency"] for p in plan["frontier"]]
    errors = [p["predicted_error"] for p in plan["frontier"]]
    assert latencies == sorted(latencies, reverse=True) and errors == sorted(errors)


def test_the_error_budget_is_kept_on_held_out_data(model, calib):
    dense, made = model.clone(), allocated(model, calib, Budget(error=0.2))
    with np.load(calib) as data:
        unseen = data["x"][384:]
    wanted, got = run(dense, unseen), run(made.model, unseen)
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    assert error == pytest.approx(made.plan["held_out"]["error"], rel=1e-5)
    assert 0 < error <= 0.2 and made.plan["patterns"]
    looser = allocated(model, calib, Budget(error=0.5)).plan
    assert looser["predicted_ms"] < made.plan["predicted_ms"]


def test_size(model, calib):
    plan = allocated(model, calib, Budget(size=0.5)).plan
    assert plan["size"] <= 0.5


def test_without_a_budget_it_stops_at_the_knee(model, calib):
    plan = allocated(model, calib, Budget()).plan
    assert plan["patterns"] and plan["predicted_error"] < plan["frontier"][-1]["predicted_error"]


def test_a_metric_decides(model, calib, tmp_path):
    """A metric that does not care lets everything go to the cheapest pattern."""
    (tmp_path / "metric.py").write_text("def one(outputs, samples):\n    return 1.0\n")
    plan = allocated(model, calib, Budget(drop=0.0), f"{tmp_path / 'metric.py'}:one").plan
    assert set(plan["patterns"].values()) == {"1:4x16"} and len(plan["patterns"]) == 3
    assert plan["held_out"]["drop"] == 0.0


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(latency=0.2), "no choice of patterns reaches the budget: the closest has 0.36 of the dense"),
        (Budget(size=0.1), "the closest has 0.36 of the dense latency and 0.25 of its weights; nothing"),
        (Budget(error=1e-6), "no choice of patterns keeps the budget: at 0.9.* of the dense latency outputs"),
    ],
)
def test_impossible_budgets(model, calib, budget, said):
    with pytest.raises(CompileError, match=said):
        allocated(model, calib, budget)


def test_one_batch_is_too_few(model, tmp_path):
    np.savez(tmp_path / "one.npz", x=np.ones((1, 64), np.float32))
    with pytest.raises(CompileError, match="has one batch; a budget needs at least two"):
        allocated(model, tmp_path / "one.npz", Budget())


def test_no_layer_fits(model, calib):
    request = PruneRequest(pattern="", method="wanda", calib=str(calib), min_size=10**6)
    with pytest.raises(CompileError, match="no layer of the model can take one of the patterns"):
        allocate(model, request, PATTERNS, Budget(), None, lambda line: None)
