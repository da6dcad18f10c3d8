"""Patterns on modules: what the layer computes with, what is declined, and what stays when masks go."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sparsec.passes import PassError  # noqa: E402
from sparsec.passes.nm_pattern import NM  # noqa: E402
from sparsec.passes.nm_structure import fits  # noqa: E402
from sparsec.passes.train import finish, sparse_weights, sparsify  # noqa: E402
from sparsec.passes.train.masks import canonical  # noqa: E402


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(1), nn.Linear(32 * 9, 31), nn.Linear(31, 7)
    )


def holds(layer, text, tensor="weight"):
    weight = canonical(getattr(layer, tensor).detach()).numpy()
    return fits(weight, NM.parse(text), getattr(layer, "groups", 1))


def test_one_line_prunes_linear_and_convolution():
    net = network()
    dense = copy.deepcopy(net)
    findings = sparsify(net, "2:4x32")
    assert [(f.node, f.outcome) for f in findings] == [("0", "applied"), ("3", "applied"), ("4", "declined")]
    assert findings[0].reason == "2:4x32: keeps 50.0 % of 4,608 weights"
    assert findings[2].reason == "217 weights are fewer than min_size=1024"
    assert holds(net[0], "2:4x32") and holds(net[3], "2:4x32") and not holds(net[4], "2:4")
    for index in (0, 3):
        kept = net[index].weight != 0
        assert torch.equal(net[index].weight[kept], dense[index].weight[kept])
        assert torch.equal(net[index].parametrizations.weight.original, dense[index].weight)


def test_finish_leaves_plain_weights_and_the_same_function():
    net, x = network(), torch.randn(2, 16, 3, 3)
    keys = set(net.state_dict())
    sparsify(net, "50%")
    before = net(x)
    assert finish(net) is net and set(net.state_dict()) == keys
    assert torch.equal(net(x), before)
    assert abs((net[0].weight == 0).float().mean().item() - 0.5) < 1e-3
    assert isinstance(net[0].weight, nn.Parameter) and not list(sparse_weights(net))


def test_layers_and_skip_choose_by_name():
    net = network()
    findings = sparsify(net, "1:4", layers="3|4", skip="4")
    reasons = {f.node: f.reason for f in findings if not f.applied}
    assert reasons == {"0": "not among layers=3|4", "4": "named by skip=4"}


def test_where_nothing_takes_the_pattern_it_says_why():
    with pytest.raises(
        PassError, match="no layer takes the pattern 2:64: Linear: 31 input channels are fewer"
    ):
        sparsify(nn.Linear(31, 129), "2:64")
    with pytest.raises(PassError, match="no Linear or Conv was found"):
        sparsify(nn.ReLU(), "2:4")


def test_a_second_pattern_takes_the_place_of_the_first():
    net = network()
    sparsify(net, "1:4")
    sparsify(net, "2:4")
    assert len(net[3].parametrizations.weight) == 1 and holds(net[3], "2:4") and not holds(net[3], "1:4")


def test_a_tied_embedding_stays_dense():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(65, 32), nn.Linear(32, 65, bias=False)
            self.head.weight = self.embedding.weight

    net = Tied()
    table = net.embedding.weight.detach().clone()
    sparsify(net, "2:4")
    finish(net)
    assert torch.equal(net.embedding.weight, table) and holds(net.head, "2:4")


def test_grouped_convolution_keeps_blocks_in_their_group():
    net = nn.Conv1d(32, 48, 3, groups=2)
    sparsify(net, "2:4x16")
    assert holds(net, "2:4x16")


def test_attention_in_projection():
    net, x = nn.MultiheadAttention(32, 4), torch.randn(5, 2, 32)
    sparsify(net, "2:4x4")
    assert holds(net, "2:4x4", "in_proj_weight") and holds(net.out_proj, "2:4x4")
    found, _ = net(x, x, x)
    assert np.isfinite(found.detach().numpy()).all()


def test_straight_through_gradient_is_sr_stes():
    net = nn.Linear(16, 31, bias=False)
    sparsify(net, "2:4", min_size=0)
    ((_, _, _, masked),) = sparse_weights(net)
    masked.straight, masked.decay = True, 0.5
    x, g = torch.randn(7, 16), torch.randn(7, 31)
    net(x).backward(g)
    original = net.parametrizations.weight.original
    expected = g.T @ x + 0.5 * (~masked.mask) * original.detach()
    torch.testing.assert_close(original.grad, expected)
