"""CUDA C to fat binaries, by whatever compiler there is, without a GPU."""

import shutil
from importlib.util import find_spec

import pytest

from sparsec.compiler.cuda import toolchain
from sparsec.compiler.errors import CompileError

KERNEL = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }\n'


def nvcc():
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    return toolchain.toolchain()


def nvrtc():
    found = [toolchain._packaged(name) for name in ("nvrtc", "nvfatbin")] if find_spec("nvidia") else [None]
    if None in found:
        pytest.skip("NVRTC is not installed: pip install 'sparsec[cuda]'")
    return toolchain.Nvrtc(*found, toolchain._nvrtc_version(found[0]))


@pytest.fixture(params=[nvcc, nvrtc])
def compiler(request):
    return request.param()


def test_a_fat_binary_holds_each_architecture(compiler):
    one = compiler.fat_binary(KERNEL, ("sm_80",), None)
    three = compiler.fat_binary(KERNEL, ("sm_80", "sm_90"), "sm_90")
    assert one[:4] == three[:4] == b"\x50\xed\x55\xba"
    assert b"twice" in one and len(three) > len(one)
    assert three == compiler.fat_binary(KERNEL, ("sm_80", "sm_90"), "sm_90"), "not reproducible"


def test_a_wrong_source_is_one_line(compiler):
    with pytest.raises(CompileError, match="failed: .*error.*") as caught:
        compiler.fat_binary("int x = ;", ("sm_80",), None)
    assert "\n" not in str(caught.value)


def test_without_any_compiler_it_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(CompileError, match=r"no CUDA compiler found: .* pip install 'sparsec\[cuda\]'$"):
        toolchain.toolchain()


def test_a_broken_nvcc_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(CompileError, match="does not say its version"):
        toolchain.toolchain()


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        ("Failed to preprocess host compiler properties.", "nvcc needs g++: install it, or take nvcc"),
        ("Unsupported gpu architecture 'compute_89'", "the toolkit does not know that GPU: take another ver"),
    ],
)
def test_what_to_do_when_nvcc_complains(tmp_path, complaint, remedy):
    (tmp_path / "nvcc").write_text(f'#!/bin/sh\necho "nvcc fatal   : {complaint}" >&2\nexit 1\n')
    (tmp_path / "nvcc").chmod(0o755)
    compiler = toolchain.Nvcc(str(tmp_path / "nvcc"), 12000)
    with pytest.raises(CompileError) as caught:
        compiler.fat_binary(KERNEL, ("sm_89",), None)
    assert f"nvcc failed: nvcc fatal   : {complaint.rstrip('.')}; {remedy}" in str(caught.value)
