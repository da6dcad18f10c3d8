"""Structured channels: LASSO against scikit-learn and the data itself, and what it does to whole networks."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from sparsec.compiler.prune import PruneRequest, prune_model
from sparsec.passes.base import PassError
from sparsec.passes.channels import find_channels
from sparsec.passes.prune import Moments, pose
from sparsec.passes.prune.lasso import lasso, select, shares
from sparsec.passes.prune.structure import Channels


@pytest.fixture
def convolved():
    """(posed problem, x `[rows, 3 taps, 5]`, its mean taken off, y likewise, weight `[4, 3, 5]`)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3, 5)) @ rng.standard_normal((5, 5))
    weight = rng.standard_normal((4, 3, 5))
    y = np.einsum("ntc,otc->no", x, weight) + 0.1 * rng.standard_normal((60, 4))
    moments = Moments.empty(15, 4)
    moments.add(x.reshape(60, 15), y)
    posed = pose(moments, weight.reshape(4, 15), free_bias=True, bias=np.zeros(4), damping=1e-12)
    return posed, x - x.mean(axis=0), y - y.mean(axis=0), weight


def test_the_shares_are_products_of_what_channels_add(convolved):
    posed, x, y, weight = convolved
    inner, wanted = shares(posed, np.tile(np.arange(5), 3))
    parts = np.einsum("ntc,otc->cno", x, weight)
    np.testing.assert_allclose(inner, np.einsum("cno,dno->cd", parts, parts) / posed.scale, rtol=1e-8)
    np.testing.assert_allclose(wanted, np.einsum("cno,no->c", parts, y) / posed.scale, rtol=1e-8)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 0.05, 0.3])
def test_the_factors_are_those_of_scikit_learn(convolved, penalty):
    from sklearn.linear_model import Lasso

    posed, x, y, weight = convolved
    inner, wanted = shares(posed, np.tile(np.arange(5), 3))
    parts = np.einsum("ntc,otc->cno", x, weight).reshape(5, -1).T / np.sqrt(posed.scale)
    oracle = Lasso(alpha=penalty / len(parts), fit_intercept=False, tol=1e-12, max_iter=100_000)
    oracle.fit(parts, y.ravel() / np.sqrt(posed.scale))
    found = lasso(inner, wanted, penalty, np.zeros(5))
    np.testing.assert_allclose(found, oracle.coef_, atol=1e-5)
    assert penalty < 0.3 or np.count_nonzero(found) < 5


def test_channels_that_others_make_up_for_are_not_kept():
    """Of 8 channels 4 are copies of the others: any choice of 4 must have one of each pair."""
    rng = np.random.default_rng(1)
    x = np.repeat(rng.standard_normal((100, 4)), 2, axis=1) + 1e-3 * rng.standard_normal((100, 8))
    weight = rng.uniform(0.5, 1.5, (6, 8))
    moments = Moments.empty(8, 6)
    moments.add(x, x @ weight.T)
    posed = pose(moments, weight, free_bias=True, bias=np.zeros(6), damping=1e-9)
    kept = select(*shares(posed, np.arange(8)), 4)
    np.testing.assert_array_equal(kept.reshape(4, 2).sum(axis=1), 1)


class Small(nn.Module):
    """A residual stream of 16 channels, a branch of 24, a classifier of the flattened rest."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.wide, self.narrow = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.last = nn.Linear(16 * 4, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.narrow(torch.relu(self.wide(x))))
        return self.last(nn.functional.max_pool2d(x, 3).flatten(1))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(path of the model, path of calibration data, its first samples)."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    network, x = Small().eval(), torch.randn(64, 3, 6, 6)
    torch.onnx.export(
        network, (x[:16],), str(folder / "m.onnx"), input_names=["x"], output_names=["y"],
        opset_version=18, dynamo=False,
    )  # fmt: skip
    np.savez(folder / "calib.npz", x=x.numpy())
    return folder / "m.onnx", str(folder / "calib.npz"), x[:16].numpy()


@pytest.mark.parametrize(("share", "sizes"), [(0.25, (12, 18)), (0.5, (8, 12))])
def test_both_sides_of_every_set_get_smaller(small, share, sizes, ort_run):
    path, calib, x = small
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path)))
    dense = ort_run(path, {"x": x})["y"]
    request = PruneRequest(f"channels:{100 * share:g}%", "search", calib, min_size=0, damping=1e-3)
    findings, layers = prune_model(model, request, lambda line: None)
    found = [c for c in find_channels(model) if c.readers]
    assert tuple(c.size for c in found) == sizes
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    error = np.square(ort_run(proto.SerializeToString(), {"x": x})["y"] - dense).sum()
    assert error < 0.35 * np.square(dense - dense.mean(axis=0)).sum()
    assert {layer["method"] for layer in layers} == {"lasso"}
    assert all(layer["error_after"] < layer["error_before"] for layer in layers)
    told = [f.reason for f in findings if f.pass_name == "channels" and f.applied]
    assert told[0].startswith(f"{sizes[0]} of 16 channels stay for ")
    used = {v.name for node in model.graph for v in node.inputs if v is not None}
    assert set(model.graph.initializers) <= used, "what was removed is not in the file"


def test_a_layer_that_stays_as_it_is_keeps_its_channels(small):
    path, calib, _ = small
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path)))
    request = PruneRequest("channels:50%", "search", calib, min_size=0, layers="*narrow*")
    findings, layers = prune_model(model, request, lambda line: None)
    assert [layer["node"] for layer in layers] == ["/narrow/Conv"]
    (declined,) = (f for f in findings if f.pass_name == "channels" and f.node == "/first/Conv")
    assert "reads them all: not among layers=*narrow*" in declined.reason


def test_the_spelling_prints_back():
    assert str(Channels.parse(" channels:12.5% ")) == "channels:12.5%"
    assert Channels.parse("2:4") is None
    with pytest.raises(PassError, match="more than 0% and less than 100% is required, found channels:100%"):
        Channels.parse("channels:100%")
