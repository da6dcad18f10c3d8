"""From torch to ONNX: the patterns are recognised exactly, the outputs are torch's, and traps are refused."""

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sparsec.passes import PassError  # noqa: E402
from sparsec.passes.nm_recognise import RecogniseNM  # noqa: E402
from sparsec.passes.train import export_onnx, sparse_weights, sparsify  # noqa: E402


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.norm.weight.data.uniform_(0.5, 2)
        self.fc, self.head = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)

    def forward(self, x):
        return self.head(torch.relu(self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)).unsqueeze(1))))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("pattern", ["2:4", "2:4x32", "1:4x16", "4:16x8", "3:4x4"])
def test_recognised_as_trained(pattern, exporter, tmp_path, ort_run):
    net, x = Net().eval(), torch.randn(2, 16, 5, 5)
    sparsify(net, pattern)
    path = tmp_path / "net.onnx"
    export_onnx(net, (x,), path, input_names=["x"], output_names=["y"], dynamo=exporter == "dynamo")
    assert len(list(sparse_weights(net))) == 3 and [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    found = ort_run(path, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    findings = RecogniseNM()(ir.load(path)).findings
    assert [f.reason.split(": ")[0] for f in findings] == [pattern] * 3 and all(f.applied for f in findings)


def test_attention(tmp_path, ort_run):
    net, x = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval(), torch.randn(2, 7, 32)
    sparsify(net, "2:4x8")
    export_onnx(net, (x,), tmp_path / "net.onnx", input_names=["x"], output_names=["y"])
    found = ort_run(tmp_path / "net.onnx", {"x": x.numpy()})["y"]
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    findings = RecogniseNM()(ir.load(tmp_path / "net.onnx")).findings
    assert len(findings) >= 4 and all(f.reason.startswith("2:4x8: ") for f in findings)


def test_unstructured_zeros_arrive(tmp_path):
    net, x = Net().eval(), torch.randn(2, 16, 5, 5)
    sparsify(net, "90%")
    export_onnx(net, (x,), tmp_path / "net.onnx")
    weights = [v.const_value.numpy() for v in ir.load(tmp_path / "net.onnx").graph.initializers.values()]
    shares = sorted(round(float((w == 0).mean()), 2) for w in weights if w.size >= 1024)
    assert shares == [0.9, 0.91, 0.91]  # of rows of 144, 32 and 64


def test_a_weight_that_the_network_does_not_use_is_named(tmp_path):
    class Part(Net):
        def forward(self, x):
            return self.fc(x)

    net = Part().eval()
    sparsify(net, "2:4", layers="fc|head")
    with pytest.raises(PassError, match="export: head is not in the ONNX file with its zeros"):
        export_onnx(net, (torch.randn(2, 32),), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_pattern_that_is_not_recognised_is_said(tmp_path):
    """Rows of a constant on the left of the product: no kernel of ours reads them."""

    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 32, bias=False)

        def forward(self, x):
            return self.fc.weight @ x

    net = Left().eval()
    sparsify(net, "2:4")
    with pytest.raises(PassError, match="fc was trained to 2:4, but the constant is the left operand"):
        export_onnx(net, (torch.randn(64, 3),), tmp_path / "net.onnx")
