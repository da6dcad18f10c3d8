"""Device folders of models for GPUs: the programs there on the emulating driver, here and as on a Jetson."""

import os
import platform
import re
import shutil
import subprocess
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from sparsec.compiler import contents, export
from sparsec.compiler.cuda import road
from sparsec.compiler.errors import CompileError
from sparsec.compiler.export.source import DEVICES, open_source

from .conftest import build_driver

pytestmark = pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
NETWORK = "(float[3,16] x, float[16,9] w) => (y) { h = MatMul(x, w) r = Relu(h) y = Softmax(r) }"


@pytest.fixture(scope="module")
def compiled(compile_for_gpu, text_model):
    """For a Jetson Orin, whatever this machine is, with a library for each host."""
    model = onnx.load_from_string(text_model(NETWORK))
    weight = np.random.default_rng(3).standard_normal((16, 9), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    del model.graph.input[1]
    return compile_for_gpu(
        model.SerializeToString(), hosts=road.hosts(), target="cuda:sm_87", exportable=True
    )


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("x86-64-linux", marks=pytest.mark.slow),
        pytest.param("aarch64-linux", marks=pytest.mark.qemu("aarch64")),
    ],
)
def test_a_device_folder_tests_itself(compiled, device, tmp_path):
    from cuda_emulator import library

    machine = DEVICES[device].architecture
    driver = build_driver(tmp_path, machine)
    export.export(open_source(compiled.path, device, "net", None), "folder", tmp_path / "folder")
    run = [
        tmp_path / "folder" / "bin" / "sparsec-device",
        tmp_path / "folder" / "model.sparsec",
        "--selftest",
    ]
    if machine != platform.machine():
        emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
        run = [emulator, "-L", f"/usr/{machine}-linux-gnu", "-E", f"LD_LIBRARY_PATH={driver.parent}", *run]
    else:
        run = ["env", f"LD_LIBRARY_PATH={driver.parent}", *run]
    needs = f"{machine} Linux with glibc 2.28 or newer and an NVIDIA GPU (sm_87), whose driver knows CUDA 13."
    assert needs in (tmp_path / "folder" / "README.md").read_text()
    kernels = library(compiled.source, machine=machine)
    environment = os.environ | {"FAKE_CUDA_KERNELS": str(kernels), "FAKE_CUDA_CAPABILITY": "87"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"ok  output y: \d\.\de-\d\d from the stored one, \d\.\de-\d\d allowed", first)
    assert re.fullmatch(r"ok  a run takes \d+\.\d{3} ms \(median of \d+\)", second)
    # Another GPU, in one line.
    done = subprocess.run(
        run, env=environment | {"FAKE_CUDA_CAPABILITY": "90"}, capture_output=True, text=True
    )
    words = "context: the artifact's kernels are for sm_87; GPU 0 (Fake GPU) is sm_90: compile with --target"
    assert (done.returncode, done.stdout) == (1, "") and done.stderr == f"{words} cuda:sm_90\n"


def test_what_is_not_made_of_it(compiled, tmp_path):
    with pytest.raises(CompileError, match="name one with --device$"):
        open_source(compiled.path, None, None, None)
    source = open_source(compiled.path, "aarch64-linux", None, None)
    assert source.library.level == "cuda-aarch64" and "sample.bin" in contents.read(compiled.path).members
    for form in ("static", "system"):
        with pytest.raises(CompileError, match=f"^--{form} is for CPUs: "):
            export.export(source, form, tmp_path / form)
    assert not any(tmp_path.iterdir())
