"""Trained networks as static programs: how large they are, and what they compute beside ONNX Runtime."""

import subprocess

import numpy as np
import pytest

from sparsec.compiler import contents, emulator, export
from sparsec.compiler.export.source import open_source
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest

# file, symbolic dims; the most bytes of a program, of one less its weights, of the library
MODELS = {
    "mnist": ("mnist.onnx", {}, 80_000, 48_000, 65_000),
    "kws": ("mlperf_tiny_kws_fp32.onnx", {"unk__123": 1}, 124_000, 32_500, 110_000),
}
KWS_ASKED = 120_000  # of x86-64 and aarch64; the others' instructions take more room
LEVELS = {"x86:v3": "v3", "arm": "neon", "armv7": "armv7", "riscv64": "rv64gc"}
ARCHITECTURES = {"arm": "aarch64", "armv7": "arm", "riscv64": "riscv64"}


def cases():
    for model in MODELS:
        for target in LEVELS:
            marks = [pytest.mark.qemu(ARCHITECTURES[target])] if target in ARCHITECTURES else []
            if (model, target) != ("mnist", "x86:v3"):
                marks.append(pytest.mark.slow)
            else:
                marks.append(pytest.mark.isa("avx2", "fma"))
            yield pytest.param(model, target, marks=marks, id=f"{model}-{target.replace(':', '-')}")


@pytest.mark.parametrize(("model", "target"), list(cases()))
def test_static_program(model, target, shared_models, ort_run, tmp_path):
    file, dims, most, most_without, most_of_library = MODELS[model]
    artifact = tmp_path / f"{model}.sparsec"
    request = CompileRequest(
        str(shared_models / file), str(artifact), target=target, dims=dims, exportable=True
    )
    compile_model(request)
    export.export(open_source(artifact, None, None, None), "static", tmp_path / "out")
    program = tmp_path / "out" / "bin" / model
    weights = contents.read(artifact).manifest.weights_size
    size = program.stat().st_size
    assert size < most and size - weights < most_without
    if (model, target) in (("kws", "x86:v3"), ("kws", "arm")):
        assert size < KWS_ASKED
    if target.startswith("x86"):  # the library is what a program of one's own grows by
        told = subprocess.run(
            ["size", "-t", tmp_path / f"out/lib/lib{model}.a"], capture_output=True, check=True
        )
        assert weights < int(told.stdout.splitlines()[-1].split()[0]) < most_of_library
    (given,), (wanted,) = (side for side in ports(artifact))
    x = np.random.default_rng(4).random(given.shape, np.float32)
    x.tofile(tmp_path / "x")
    command = [*(emulator.emulator(LEVELS[target]) or []), program]
    files = ["--input", tmp_path / "x", "--output", tmp_path / "y"]
    subprocess.run([*command, "--selftest"], check=True)
    subprocess.run([*command, *files], check=True)
    found = np.fromfile(tmp_path / "y", np.float32).reshape(wanted.shape)
    expected = ort_run(shared_models / file, {given.name: x})[wanted.name]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-6


def ports(artifact):
    manifest = contents.read(artifact).manifest
    return manifest.inputs, manifest.outputs
