"""--precision bf16, fp16 and tf32 for GPUs: whole networks by the shipped loader on the emulating driver."""

import numpy as np
import onnx_ir as ir
import pytest

import zoo
from sparsec.compiler import reference
from sparsec.runtime import load

SPARSE = "nm{n=2,m=4,block=1,min_size=256}"
NETWORKS = [
    ("mlp", "bf16", ""),
    ("lenet", "fp16", SPARSE),
    ("transformer_encoder", "fp16", ""),
    ("transformer_encoder", "bf16", SPARSE),
    pytest.param("lenet", "bf16", "", marks=pytest.mark.slow),
    pytest.param("resnet18", "bf16", SPARSE, marks=pytest.mark.slow),
    pytest.param("resnet50", "fp16", "", marks=pytest.mark.slow),
    pytest.param("mobilenet_v2", "bf16", "", marks=pytest.mark.slow),
    pytest.param("bert", "fp16", SPARSE, marks=pytest.mark.slow),
    pytest.param("vit_s16", "bf16", "", marks=pytest.mark.slow),
    pytest.param("gpt2_prefill", "bf16", SPARSE, marks=pytest.mark.slow),
    pytest.param("unet", "fp16", "", marks=pytest.mark.slow),
]


@pytest.fixture(scope="session")
def pruned(tmp_path_factory):
    """``pruned(path, passes)``: the network that a compilation with ``passes`` is about, for ONNX Runtime."""
    from sparsec.compiler.ingest import ingest
    from sparsec.passes import run_pipeline

    def prune(path, spec):
        if not spec:
            return path
        model = ingest(path)
        run_pipeline(model, spec)
        out = tmp_path_factory.mktemp("pruned") / "model.onnx"
        ir.save(model, out)
        return out

    return prune


@pytest.mark.parametrize("name, precision, passes", NETWORKS)
def test_small_networks(name, precision, passes, driver, compile_for_gpu, ort_run, pruned):
    path, feeds = zoo.export(name, small=True), zoo.feeds(name, small=True)
    compiled = compile_for_gpu(path, precision=precision, passes=passes)
    expected = ort_run(pruned(path, passes), feeds)
    layers = compiled.report["layers"]
    short = [layer for layer in layers if layer.get("precision", "float32") != "float32"]
    assert short and compiled.report["kernels"]["tensor_gemm"] > 0
    if passes:
        assert {layer["kernel"] for layer in short if layer["pattern"] != "dense"} == {"sparse"}
        assert "mma.sp::ordered_metadata" in compiled.source
    for order in range(3):
        driver.be(compiled.emulated, order=order)
        with load(compiled.path) as model:
            found = model(feeds)
            assert model.manifest["precision"] == precision
        for output, want in expected.items():
            if want.dtype.kind != "f":
                continue
            error = reference.compare(found[output], want, precision=precision)
            assert error.within and error.max_abs > 1e-6 * error.scale, (output, error)
