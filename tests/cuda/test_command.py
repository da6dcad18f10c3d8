"""``sparsec compile --target cuda`` from the outside, with a real compiler and without a GPU."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DIGITS = ROOT / "examples" / "digits" / "sparse.onnx"


def sparsec(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-m", "sparsec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_one_architecture_from_model_to_file(tmp_path):
    out = tmp_path / "digits.sparsec"
    done = sparsec("compile", DIGITS, "--target", "cuda:sm_87", "--keep-source", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "  compile by nvcc " in done.stderr
    with zipfile.ZipFile(out) as opened:
        names, manifest = set(opened.namelist()), json.loads(opened.read("manifest.json"))
        assert opened.read("kernels.fatbin")[:4] == b"\x50\xed\x55\xba"
        source = opened.read("kernels.cu").decode()
    libraries = {f"model.cuda-{machine}.so" for machine in ("x86_64", "aarch64")}
    assert names == {"manifest.json", "kernels.cu", "kernels.fatbin", "weights.bin", *libraries}
    assert manifest["gpu"]["architectures"] == ["sm_87"] and manifest["gpu"]["ptx"] == ""
    assert 'extern "C" __global__' in source
    assert not {"__expf", "__logf", "__fdividef", "use_fast_math"} & set(source.replace("(", " ").split())
    if "not_run" in manifest["receipt"]:  # no GPU here
        assert manifest["receipt"]["stand_in"] in manifest["receipt"]["levels"]
        assert "in their place" in done.stdout and "level cuda was not compared: " in done.stdout
    assert f"kernels for sm_87, made by CUDA {manifest['gpu']['cuda']}\n" in sparsec("inspect", out).stdout
    assert all(error["within"] for error in manifest["receipt"]["max_error"].values())


def test_an_unknown_architecture_is_wrong_usage(tmp_path):
    done = sparsec("compile", DIGITS, "--target", "cuda:sm_75", "-o", tmp_path / "x.sparsec")
    assert done.returncode == 2 and "'cuda:sm_75'" in done.stderr and "'cuda:sm_87'" in done.stderr


def test_without_a_compiler_nothing_is_begun(tmp_path):
    done = sparsec("compile", DIGITS, "--target", "cuda", "-o", tmp_path / "x.sparsec", PATH=str(tmp_path))
    if done.returncode == 0:
        pytest.skip("NVRTC is installed")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("or run: python -m pip install 'sparsec[cuda]'")
    assert "read the model" not in done.stderr


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("cuda", ("sm_80", "sm_87", "sm_89", "sm_90")),
        ("cuda:sm_90", ("sm_90",)),
        ("cuda:sm_90,cuda:sm_80", ("sm_80", "sm_90")),
        ("x86", ()),
    ],
)
def test_what_a_target_means(target, names):
    from sparsec.compiler.request import gpu_names

    assert gpu_names(target) == names


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "cuda:sm_75",
            "unknown GPU architecture 'sm_75' in target 'cuda:sm_75'; choose of cuda, cuda:sm_80,",
        ),
        ("cuda,x86", "GPUs and CPUs do not go into one file; compile twice"),
    ],
)
def test_targets_that_cannot_be(target, words):
    from sparsec.compiler.errors import CompileError
    from sparsec.compiler.request import gpu_names

    with pytest.raises(CompileError, match=words):
        gpu_names(target)


def test_int8_is_for_cpus():
    from sparsec.compiler.errors import CompileError
    from sparsec.compiler.request import CompileRequest

    with pytest.raises(CompileError, match="^--precision int8 is for CPUs; compile for 'cuda' without it$"):
        CompileRequest("m.onnx", "m.sparsec", target="cuda", precision="int8")


def test_requests_and_schedules_know_the_same_architectures():
    from sparsec.compiler.request import GPUS
    from sparsec.schedules.cuda.target import ARCHITECTURES

    assert tuple(ARCHITECTURES) == GPUS
