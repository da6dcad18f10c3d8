"""Schedules: dense at first, the wanted pattern from ``until`` on, in the steps that the text promises."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sparsec.passes.train import Fixed, MaskDecay, Regrow, StructureDecay, sparse_weights, sparsify  # noqa: E402


def layer(pattern="2:4"):
    torch.manual_seed(0)
    net = nn.Linear(32, 33, bias=False)
    sparsify(net, pattern)
    return net


def kept(net):
    return (net.weight != 0).float().mean().item()


def disturb(net):
    """Other weights win now."""
    with torch.no_grad():
        net.parametrizations.weight.original.copy_(torch.randn(33, 32))


def mask(net):
    ((*_, masked),) = sparse_weights(net)
    return masked.mask.clone()


def test_fixed_keeps_its_masks():
    net = layer()
    before = mask(net)
    disturb(net)
    Fixed()(net, 0.5)
    assert torch.equal(mask(net), before)


@pytest.mark.parametrize("schedule", [Regrow(0.5), MaskDecay(0.5), StructureDecay(0.5)])
@pytest.mark.parametrize("pattern, share", [("2:4", 0.5), ("1:8x16", 0.125), ("75%", 0.25)])
def test_masks_follow_the_weights_and_are_final_from_until_on(schedule, pattern, share):
    net = layer(pattern)
    before = mask(net)
    for progress in (0, 0.3, 0.49):
        schedule(net, progress)
        disturb(net)
    schedule(net, 0.5)
    final = mask(net)
    assert kept(net) == pytest.approx(share) and not torch.equal(final, before)
    disturb(net)
    schedule(net, 0.7)
    assert torch.equal(mask(net), final) and kept(net) == pytest.approx(share)


def test_mask_decay_scales_the_pruned_weights():
    net = layer()
    MaskDecay(0.5)(net, 0.125)
    original = net.parametrizations.weight.original
    torch.testing.assert_close(net.weight, torch.where(mask(net), original, 0.75 * original))


def test_structure_decay_goes_one_by_one():
    net = layer("1:4")
    seen = []
    for progress in (0, 0.1, 0.17, 0.3, 0.34, 0.5, 1):
        StructureDecay(0.5)(net, progress)
        seen.append(kept(net))
    assert seen == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_structure_decay_of_unstructured_is_cubic():
    net = layer("80%")
    StructureDecay(1.0)(net, 0.0)
    assert kept(net) == 1
    StructureDecay(1.0)(net, 0.5)
    assert 1 - kept(net) == pytest.approx(0.8 * (1 - 0.5**3), abs=1 / 64)  # rows of 32
