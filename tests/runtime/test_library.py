"""Libraries that are not what they should be, and machines that have run out of something."""

import os
import subprocess
import sys

import pytest

import sparsec
from sparsec.runtime import ArtifactError, RunError, library


def artifact_with(tiny, folder, code):
    """The tiny artifact with a library compiled from C text, hashed properly."""
    from sparsec.compiler.package import write_artifact

    (folder / "a.c").write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", "a.c", "-o", "a.so"], cwd=folder, check=True)
    members = {**tiny.members, "model.v2.so": (folder / "a.so").read_bytes()}
    write_artifact(folder / "a.sparsec", tiny.manifest, members)
    return folder / "a.sparsec"


def test_no_entry(tiny, tmp_path):
    path = artifact_with(tiny, tmp_path, "int something_else;")
    with pytest.raises(
        ArtifactError, match=r"a.sparsec': the artifact's library does not export sparsec_module_v1"
    ):
        sparsec.load(path)


def test_other_abi(tiny, tmp_path):
    code = "static const unsigned abi = 7; const unsigned *sparsec_module_v1(void) { return &abi; }"
    path = artifact_with(tiny, tmp_path, code)
    with pytest.raises(
        ArtifactError, match="the artifact's library has ABI 7, this runtime speaks ABI 1 to 2"
    ):
        sparsec.load(path)


def test_refusals_leave_nothing_behind(tiny, tmp_path):
    path = artifact_with(tiny, tmp_path, "int something_else;")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ArtifactError):
        sparsec.load(path)
    with pytest.raises(RunError, match="the system cannot load the model's code: .*file too short"):
        library.load_code(b"\x7fELF")
    assert os.listdir("/proc/self/fd") == before


def test_code_is_sealed(tiny):
    loaded, fd = library.load_code(tiny.members["model.v2.so"])
    for change in (
        lambda: os.write(fd, b"x"),
        lambda: os.ftruncate(fd, 0),
        lambda: os.ftruncate(fd, 1 << 20),
    ):
        with pytest.raises(PermissionError):
            change()
    assert loaded.sparsec_module_v1
    library._ctypes.dlclose(loaded._handle)
    os.close(fd)


def test_no_memory_for_code(tiny, monkeypatch):
    def full(*args):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", full)
    with pytest.raises(
        RunError, match="cannot make memory for the model's code: memfd_create: Too many open"
    ):
        sparsec.load(tiny.path)


LIMITED = """
import resource, sys, sparsec
from sparsec.runtime import RunError
model = sparsec.load(sys.argv[1], threads=1)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    model.context(threads=1000)
except RunError as e:
    print(e)
print(model.context(threads=2).threads, len(__import__("os").listdir("/proc/self/task")))
"""


def test_no_more_threads(tiny):
    """Stacks for some of a thousand threads: those that started end again."""
    command = [sys.executable, "-c", LIMITED, tiny.path, str(100 << 20)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout == "cannot start 999 threads: the system's limit is reached\n2 1\n", run.stderr


def test_no_memory_for_a_context(tiny, plan_of_tiny, kernel_object, tmp_path):
    from sparsec.compiler.native import link
    from sparsec.compiler.package import write_artifact

    link(plan_of_tiny(tiny.members["weights.bin"]), [kernel_object], 1 << 60, tmp_path / "a.so", "v2")
    members = {**tiny.members, "model.v2.so": (tmp_path / "a.so").read_bytes()}
    write_artifact(tmp_path / "a.sparsec", tiny.manifest, members)
    with pytest.raises(RunError, match=r"no memory for a context: \d+ bytes are needed"):
        sparsec.load(tmp_path / "a.sparsec", threads=1)
