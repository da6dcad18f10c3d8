"""Networks compiled for GPUs, by the shipped loader on the emulating driver, against ONNX Runtime."""

import re

import numpy as np
import pytest

import zoo
from sparsec.runtime import load

ORDERS = 3  # of threads: round robin, warps forwards, warps backwards
QUICK = ("mlp", "lstm_tagger", "transformer_encoder")
NETWORKS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in zoo.NETWORKS
    if name != "minilm"
]


def assert_close(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, want in expected.items():
        assert found[name].dtype == want.dtype and found[name].shape == want.shape, name
        if want.dtype.kind == "f":
            error = np.abs(found[name].astype(np.float64) - want).max()
            assert error <= 1e-5 * np.abs(want).max() + 1e-6, name
        else:
            np.testing.assert_array_equal(found[name], want, err_msg=name)


def runs_like(driver, compiled, feeds: dict, expected: dict) -> None:
    """In every order of threads, and again when the run is replayed as a graph."""
    before = driver.counters
    for order in range(ORDERS):
        driver.be(compiled.emulated, order=order)
        with load(compiled.path) as model:
            first = model(feeds)
            assert_close(first, expected)
            if order == 0:
                again = [model(feeds) for _ in range(2)]
                for name, value in first.items():
                    assert all(np.array_equal(other[name], value) for other in again)
                done = driver.counters
                assert (done.captures - before.captures, done.graph_launches - before.graph_launches) == (
                    1,
                    2,
                )


@pytest.mark.parametrize("name", NETWORKS)
def test_small_networks(name, driver, compile_for_gpu, ort_run):
    path, feeds = zoo.export(name, small=True), zoo.feeds(name, small=True)
    runs_like(driver, compile_for_gpu(path), feeds, ort_run(path, feeds))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet", "lstm_tagger"])
def test_networks_of_full_size(name, driver, compile_for_gpu, ort_run):
    path, feeds = zoo.export(name), zoo.feeds(name)
    runs_like(driver, compile_for_gpu(path), feeds, ort_run(path, feeds))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in QUICK])
def test_every_access_is_a_right_one(name, driver, compile_for_gpu):
    """No kernel reads outside a buffer or what nobody has written, and no two threads race."""
    compiled = compile_for_gpu(zoo.export(name, small=True))
    driver.be(compiled.watched())
    with load(compiled.path) as model:
        model(zoo.feeds(name, small=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.NETWORKS if name != "minilm"])
def test_every_network_becomes_machine_code(name, compile_for_gpu):
    """By whatever compiler there is, for the four architectures and as PTX."""
    from sparsec.compiler.cuda.toolchain import toolchain
    from sparsec.compiler.errors import CompileError
    from sparsec.compiler.request import GPUS

    try:
        compiler = toolchain()
    except CompileError as error:
        pytest.skip(str(error))
    source = compile_for_gpu(zoo.export(name, small=True)).source
    binary = compiler.fat_binary(source, GPUS, GPUS[-1])
    kernels = set(re.findall(r"__launch_bounds__\(\d+\) (\w+)\(", source))
    assert kernels and all(name.encode() in binary for name in kernels)


@pytest.mark.parametrize("name", ["mlperf_tiny_kws_fp32", pytest.param("mnist", marks=pytest.mark.slow)])
def test_trained_models_of_full_size(name, driver, compile_for_gpu, ort_run, shared_models):
    path = shared_models / f"{name}.onnx"
    feeds = zoo.onnx_feeds(path)
    runs_like(driver, compile_for_gpu(path), feeds, ort_run(path, feeds))


def test_zeros_are_skipped(driver, compile_for_gpu, ort_run, tmp_path):
    """Whether many output channels share them or each has its own."""
    import onnx_ir as ir

    from sparsec.compiler.ingest import ingest
    from sparsec.passes import run_pipeline

    path, feeds = zoo.export("mlp", small=True), zoo.feeds("mlp", small=True)
    for block in (16, 1):
        spec = f"nm{{n=1,m=4,block={block},min_size=256}}"
        pruned = ingest(path)
        run_pipeline(pruned, spec)
        ir.save(pruned, tmp_path / "pruned.onnx")
        compiled = compile_for_gpu(path, passes=spec)
        pruned_layers = [layer for layer in compiled.report["layers"] if layer["pattern"] != "dense"]
        assert {layer["kernel"] for layer in pruned_layers} == {"sparse"}
        reasons = [f["reason"] for f in compiled.report["findings"] if f["pass_name"] == "choose"]
        assert reasons and all(r.startswith("estimated: ") for r in reasons)
        runs_like(driver, compiled, feeds, ort_run(tmp_path / "pruned.onnx", feeds))
