"""What real exporters write: torch's two, with dynamic axes, and trained models of others."""

import sys
import warnings
from pathlib import Path

import pytest

MODELS = [
    ("mnist", {"Conv": 2, "MatMul": 1}),
    ("ultraface_rfb320", {"Conv": 52}),
    ("mlperf_tiny_ic_resnet8_fp32", {"Conv": 9}),
    ("mlperf_tiny_kws_fp32", {"Conv": 9, "DequantizeLinear": 0}),
    ("mlperf_tiny_ad_fp32", {"MatMul": 10}),
]
SHAPE_ARITHMETIC = {"Shape", "Size", "Range", "ConstantOfShape", "Constant", "Identity", "If", "Loop"}


@pytest.mark.parametrize(("name", "counts"), MODELS)
def test_trained_models(shared_models, same, ops, name, counts):
    left = ops(same((shared_models / f"{name}.onnx").read_bytes()))
    assert not SHAPE_ARITHMETIC & set(left)
    assert {op: left.count(op) for op in counts} == counts


def test_quantised_model(shared_models, save, ops, ort_run):
    """Without integers weights are floats; the numbers are those of the graph as written, without fusions."""
    import numpy as np
    import onnx_ir as ir
    import onnxruntime

    from sparsec.compiler.ingest import ingest

    path = shared_models / "mlperf_tiny_ic_resnet8_int8_qdq.onnx"
    model = ingest(path, integers=False)
    assert not SHAPE_ARITHMETIC & set(ops(model))
    assert all(n.inputs[0].const_value is None for n in model.graph if n.op_type == "DequantizeLinear")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {"input_1_int8": np.random.default_rng(0).integers(-128, 128, (1, 3, 32, 32)).astype(np.int8)}
    feeds = {model.graph.inputs[0].name: feeds.popitem()[1].reshape(model.graph.inputs[0].shape.numpy())}
    first, second = (
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)
        for data in (path.read_bytes(), ir.to_proto(model).SerializeToString())
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


ZOO = [
    "mlp",
    "lenet",
    "mobilenet_v2",
    "unet_resize",
    "bert",
    "transformer_encoder",
    "gpt2_decode",
    "lstm_tagger",
]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_both_exporters(same, ops, name, exporter):
    pytest.importorskip("torch")
    import zoo

    path = zoo.export(name, exporter=exporter, small=True)
    model = Path(path).read_bytes()
    left = ops(same(model, feeds=dict(zoo.feeds(name, small=True)), rtol=1e-4))
    assert not SHAPE_ARITHMETIC & set(left)


@pytest.fixture(scope="module")
def torch_nets():
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        """Attention with a mask made from the sizes, chunks, stacks: all the shape arithmetic there is."""

        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.qkv = nn.Linear(16, 48)
            self.out = nn.Linear(16, 16)
            self.norm = nn.LayerNorm(16)

        def forward(self, ids):
            batch, length = ids.shape
            x = self.embed(ids) + torch.arange(length, device=ids.device)[None, :, None] * 0.01
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            q, k, v = (t.reshape(batch, length, 2, 8).transpose(1, 2) for t in (q, k, v))
            mask = torch.triu(torch.full((length, length), float("-inf")), diagonal=1)
            scores = (q @ k.transpose(-1, -2)) / 8**0.5 + mask
            y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 16)
            return self.norm(x + self.out(y))

    class Convs(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.up = nn.Sequential(nn.Conv2d(8, 4, 3, 1, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            y = self.down(x)
            y = nn.functional.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
            return torch.cat([self.up(y), x], dim=1).flatten(1)

    torch.manual_seed(0)
    convs = Convs()
    with torch.no_grad():
        convs(torch.randn(4, 3, 16, 16))  # gives the normalisation statistics of its own
    ids = torch.randint(0, 50, (2, 7))
    return {
        "block": (Block().eval(), (ids,), "ids", {0: "batch", 1: "seq"}),
        "convs": (convs.eval(), (torch.randn(2, 3, 16, 16),), "x", {0: "batch"}),
    }


def export(net, path: Path, dynamo: bool) -> None:
    import torch

    module, example, name, axes = net
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = {axis: torch.export.Dim(dim, min=2, max=64) for axis, dim in axes.items()}
            torch.onnx.export(
                module, example, str(path), dynamo=True, verbose=False, external_data=False,
                input_names=[name], output_names=["y"], dynamic_shapes=(dims,),
            )  # fmt: skip
        else:
            torch.onnx.export(
                module, example, str(path), dynamo=False, opset_version=14,
                input_names=[name], output_names=["y"], dynamic_axes={name: axes, "y": {0: "batch"}},
            )  # fmt: skip


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["block", "convs"])
def test_dynamic_axes(torch_nets, tmp_path, same, ops, name, dynamo):
    export(torch_nets[name], tmp_path / "net.onnx", dynamo)
    data = (tmp_path / "net.onnx").read_bytes()
    log = []
    dims = {"seq": 9} if name == "block" else {}
    result = same(data, dims=dims, log=log, rtol=1e-4)
    assert not SHAPE_ARITHMETIC & set(ops(result)) and "BatchNormalization" not in ops(result)
    assert [line for line in log if "assuming batch=1" in line] == log[:1] and log
    if name == "convs":
        same(data, dims={"batch": 3}, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", [*ZOO, "vit_s16", "resnet18", "gpt2_prefill"])
def test_tvm_takes_what_comes_out(name, exporter, tmp_path):
    pytest.importorskip("torch")
    import onnx_ir as ir
    from tvm.relax.frontend.onnx import from_onnx

    import zoo
    from sparsec.compiler.ingest import ingest

    model = ingest(zoo.export(name, exporter=exporter, small=True))
    if any(node.op_type in ("LSTM", "GRU", "RNN") for node in model.graph):
        pytest.skip("recurrent operators are converted by the compiler, not by TVM's importer")
    assert "main" in [v.name_hint for v in from_onnx(ir.to_proto(model)).get_global_vars()]
    assert "tvm" in sys.modules
