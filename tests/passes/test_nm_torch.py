"""Masks that torch's own tools make, through both of torch's exporters."""

import warnings

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
prune = pytest.importorskip("torch.nn.utils.prune")

from sparsec.passes.nm_pattern import NM  # noqa: E402
from sparsec.passes.nm_prune import mask  # noqa: E402
from sparsec.passes.nm_recognise import RecogniseNM  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.fc = torch.nn.Linear(32, 64)
        self.head = torch.nn.Linear(64, 10, bias=False)

    def forward(self, x):
        x = torch.relu(self.conv(x)).mean((2, 3)).unsqueeze(1)  # rank 3: a Linear becomes MatMul and Add
        return self.head(torch.relu(self.fc(x)))


class TwoFour(prune.BasePruningMethod):
    """2:4 along dim 1, keeping the two largest of four, written with torch's sort."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        flat = t.detach().abs().transpose(1, -1)
        groups = flat.reshape(*flat.shape[:-1], -1, 4)
        second = groups.sort(dim=-1, descending=True).values[..., 1:2]
        return (groups >= second).to(t.dtype).reshape(flat.shape).transpose(1, -1) * default_mask


def by_prune_with_mask(net):
    for module in (net.conv, net.fc, net.head):
        TwoFour.apply(module, "weight")


def by_prune_removed(net):
    by_prune_with_mask(net)
    for module in (net.conv, net.fc, net.head):
        prune.remove(module, "weight")


def by_sparsifier(net):
    from torch.ao.pruning import WeightNormSparsifier

    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(net, [{"tensor_fqn": "fc.weight"}, {"tensor_fqn": "head.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()


def export(net, exporter, path, x):
    options = {"dynamo": exporter == "dynamo", "opset_version": 18}
    if options["dynamo"]:
        options |= {"verbose": False, "external_data": False}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), **options)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize(
    "sparsify, count",
    [(by_prune_with_mask, 3), (by_prune_removed, 3), (by_sparsifier, 2)],
    ids=["mask", "removed", "sparsifier"],
)
def test_two_of_four_from_torch(sparsify, count, exporter, tmp_path, ort_run):
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 16, 5, 5)
    sparsify(net)
    path = tmp_path / "net.onnx"
    export(net, exporter, path, x)
    model = ir.load(path)
    feeds = {model.graph.inputs[0].name: x.numpy()}
    before = ort_run(path, feeds)
    findings = RecogniseNM()(model).findings
    assert [f.reason[:5] for f in findings] == ["2:4: "] * count and all(f.applied for f in findings)
    after = ort_run(ir.to_proto(model).SerializeToString(), feeds)
    for name, value in before.items():
        # Folding `weight * mask` may let ONNX Runtime choose another kernel; everything else is bit-exact.
        tolerance = 1e-6 if sparsify is by_prune_with_mask else 0
        np.testing.assert_allclose(after[name], value, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(next(iter(after.values())), net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_our_mask_is_the_sparsifiers():
    from torch.ao.pruning import WeightNormSparsifier

    net = torch.nn.Sequential(torch.nn.Linear(64, 48))
    weight = net[0].weight.detach().numpy().copy()
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(net, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    expected = net[0].weight.detach().numpy() != 0
    np.testing.assert_array_equal(mask(weight[:, None], NM(2, 4))[:, 0], expected)
