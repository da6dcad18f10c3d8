"""Channels permuted between layers: the function stays, every constant follows, and refusals say why."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from sparsec.passes.base import PassError
from sparsec.passes.channel_removal import why_not
from sparsec.passes.channel_rules import RULES, At, Refusal
from sparsec.passes.channels import find_channels
from sparsec.passes.dead_channels import RemoveDeadChannels
from sparsec.passes.graph import add_constant
from sparsec.passes.permute import permute

RNG = np.random.default_rng(0)


class Residual(nn.Module):
    """Two convolutions that share their channels through a sum, a depthwise one, pooling, a classifier."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7)
        self.second, self.depthwise = nn.Conv2d(7, 7, 3, padding=1), nn.Conv2d(7, 7, 3, groups=7)
        self.last, self.relu = nn.Linear(7 * 4, 5), nn.ReLU()
        self.norm.running_mean.uniform_(-1, 1), self.norm.running_var.uniform_(1, 2)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(x + self.second(x))
        return self.last(nn.functional.max_pool2d(self.depthwise(x), 2).flatten(1))


class Upsampling(nn.Module):
    """A transposed convolution between two plain ones, and one that has a channel for each group."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Conv2d(2, 5, 3), nn.ConvTranspose2d(5, 7, 2, stride=2)
        self.each, self.last = nn.ConvTranspose2d(7, 7, 2, groups=7), nn.Conv2d(7, 3, 1)

    def forward(self, x):
        return self.last(self.each(torch.relu(self.up(torch.relu(self.first(x))))))


class Attention(nn.Module):
    """Two heads of six, with the softmax of their scores."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).view(2, 5, 2, 6).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v
        return self.o(y.transpose(1, 2).reshape(2, 5, 12))


class Stream(nn.Module):
    """A residual stream from a table on, through LayerNorm and a norm that is written out."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.inner, self.outer, self.last = nn.Linear(8, 11), nn.Linear(11, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.table(x))
        x = x + self.outer(nn.functional.gelu(self.inner(x)))
        return self.last(x / (x * x).mean(-1, keepdim=True).sqrt())


NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(9, 17), nn.ReLU(), nn.Linear(17, 6), nn.Tanh(), nn.Linear(6, 4)),
        (3, 9),
        [(17, 17, 1, 1), (6, 6, 1, 1), "output is an output of the model"],
    ),
    "gelu": (
        lambda: nn.Sequential(nn.Linear(8, 33, bias=False), nn.GELU(), nn.Linear(33, 8)),
        (2, 5, 8),
        [(33, 33, 1, 1), "output is an output of the model"],
    ),
    "residual": (Residual, (2, 3, 6, 6), [(7, 7, 3, 2), "output is an output of the model"]),
    "upsampling": (
        Upsampling,
        (2, 2, 6, 6),
        [(5, 5, 1, 1), (7, 7, 2, 1), "output is an output of the model"],
    ),
    "attention": (
        Attention,
        (2, 5, 12),
        [(12, 6, 2, 0), (12, 6, 1, 1), "output is an output of the model"],
    ),
    "stream": (Stream, None, [(11, 11, 1, 1), (8, 8, 1, 2), "output is an output of the model"]),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``exported(network, x)`` -> the model in ONNX, its shapes inferred."""

    def export(network, x):
        path = tmp_path_factory.mktemp("permute") / "model.onnx"
        torch.onnx.export(
            network.eval(), (x,), str(path), input_names=["x"], output_names=["output"], dynamo=False,
            opset_version=18, do_constant_folding=True, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
        return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True))

    return export


@pytest.mark.parametrize("name", NETWORKS)
def test_every_set_of_channels_moves_and_the_function_stays(name, exported, ort_run):
    torch.manual_seed(0)
    make, shape, wanted = NETWORKS[name]
    network = make()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(shape) if shape else torch.arange(6).reshape(2, 3)
    model = exported(network, x)
    feeds = {"x": x.numpy()}
    before = ort_run(ir.to_proto(model).SerializeToString(), feeds)
    told = []
    for index in range(len(find_channels(model))):
        found = find_channels(model)[index]
        told.append(found.refusal or (found.size, found.run, len(found.makers), len(found.readers)))
        if found.refusal is None:
            order = np.concatenate(
                [RNG.permutation(r) for r in np.split(np.arange(found.size), found.size // found.run)]
            )
            old = [fold.array for fold in found.folds]
            permute(model, [(found, order)])
            new = [fold.array for fold in find_channels(model)[index].folds]
            assert len(new) == len(old) and not any(map(np.array_equal, old, new))
    assert sorted(map(str, told)) == sorted(map(str, wanted))
    after = ort_run(ir.to_proto(model).SerializeToString(), feeds)
    np.testing.assert_allclose(after["output"], before["output"], rtol=1e-5, atol=1e-5)


@pytest.fixture
def mlp(exported):
    """A model of two layers with 6 channels between."""
    return exported(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(1, 4))


def test_an_order_that_is_no_permutation_is_refused(mlp):
    with pytest.raises(PassError, match="an order of 6 channels that stay in their runs of 6 is required"):
        permute(mlp, [(find_channels(mlp)[0], np.zeros(6, int))])


def test_channels_that_leave_their_head_are_refused(exported):
    model = exported(Attention(), torch.zeros(2, 5, 12))
    with pytest.raises(PassError, match="stay in their runs of 6"):
        permute(model, [(find_channels(model)[0], np.arange(12)[::-1])])


def test_channels_of_an_output_are_refused(mlp):
    with pytest.raises(PassError, match="cannot move: output is an output of the model"):
        permute(mlp, [(find_channels(mlp)[1], np.arange(2))])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


class Mixed(nn.Module):
    """One network for each way in which channels cannot be followed."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(4, 6), nn.Linear(6, 2), between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


REFUSALS = {
    "cumsum": (lambda y: torch.cumsum(y, -1), r"CumSum\) cannot be followed"),
    "concat": (lambda y: torch.cat([y[:, :3], y[:, 3:]], -1), r"Slice\) cannot be followed"),
    "outer": (lambda y: y + torch.ones(3, 6) @ y.T @ y, r"\(Transpose|\(MatMul"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_followed_says_why(name, exported):
    between, reason = REFUSALS[name]
    found = find_channels(exported(Mixed(between), torch.zeros(3, 4)))[0]
    assert found.refusal is not None
    assert re.search(reason, found.refusal)


class Subnetwork(nn.Module):
    """A sum over heads alone, which would mix channels that move differently."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.first(x).reshape(3, 2, 6).sum(1))


def test_a_sum_over_heads_is_refused(exported):
    found = find_channels(exported(Subnetwork(), torch.zeros(3, 4)))[0]
    assert found.refusal.endswith("mixes heads")


def test_a_reduction_that_may_do_nothing_is_refused():
    x = ir.Value(name="x", shape=ir.Shape([2, 4]))
    node = ir.node("ReduceSum", [x], {"noop_with_empty_axes": ir.AttrInt64("noop_with_empty_axes", 1)})
    with pytest.raises(Refusal, match="may reduce nothing"):
        list(RULES["ReduceSum"](node, 0, At((1,))))


def test_a_tied_weight_stays(exported):
    found = find_channels(exported(Tied(), torch.zeros(3, 6)))[0]
    assert "shares its weight with another layer" in found.refusal


def dead(model, index, channels):
    """Have all readers of the set read zeros for `channels`."""
    for layer, inner in find_channels(model)[index].readers:
        weight = layer.weight.copy()
        weight.reshape(*weight.shape[:2], -1, inner)[:, :, channels] = 0
        layer.node.replace_input_with(1, add_constant(model, "zeroed", layer.stored(weight)))


@pytest.mark.parametrize("name", ["mlp", "gelu", "residual", "upsampling"])
def test_channels_that_nothing_reads_are_removed(name, exported, ort_run):
    """Through sums of branches, batch norms, pooling, depthwise convolutions and a flattening."""
    torch.manual_seed(0)
    make, shape, _ = NETWORKS[name]
    x = torch.randn(shape)
    model = exported(make(), x)
    dead(model, 0, [1, 4])
    feeds = {"x": x.numpy()}
    before = ort_run(ir.to_proto(model).SerializeToString(), feeds)
    size = find_channels(model)[0].size
    (finding,) = (f for f in RemoveDeadChannels()(model).findings if f.applied)
    assert finding.reason.startswith(f"2 of {size} output channels carry nothing to ")
    assert find_channels(model)[0].size == size - 2
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    after = ort_run(ir.to_proto(model).SerializeToString(), feeds)
    np.testing.assert_allclose(after["output"], before["output"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"), [("stream", "depends on all of them"), ("attention", "they are cut into heads of 6")]
)
def test_channels_that_are_summed_over_stay(name, reason, exported):
    make, shape, _ = NETWORKS[name]
    x = torch.randn(shape) if shape else torch.arange(6).reshape(2, 3)
    model = exported(make(), x)
    sets = enumerate(find_channels(model))
    index = next(i for i, found in sets if found.readers and (why_not(found) or "").endswith(reason))
    dead(model, index, [1])
    (finding,) = RemoveDeadChannels()(model).findings
    assert not finding.applied and finding.reason.endswith(reason)
    assert "1 of " in finding.reason and "are not read, but stay: " in finding.reason
