"""Artifacts on disk: one spelling, readable by zip tools, and never half of one."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
import zlib

import pytest

from sparsec.compiler import package
from sparsec.compiler.errors import CompileError
from sparsec.compiler.package import base_manifest, library_member, write_artifact
from sparsec.compiler.plan import Plan, Port
from sparsec.runtime import container

MEMBERS = {"weights.bin": bytes(range(256)) * 33, "model.v3.so": b"code", "empty.bin": b""}


def members_of(path):
    data = path.read_bytes()
    found = container.read_members(lambda at, n: data[at : at + n], len(data))
    return {m.name: data[m.offset : m.offset + m.size] for m in found}, found


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.sparsec"
    write_artifact(path, {"format": 1, "name": "é\n"}, MEMBERS)
    contents, members = members_of(path)
    assert [m.name for m in members] == ["manifest.json", "empty.bin", "model.v3.so", "weights.bin"]
    manifest = json.loads(contents.pop("manifest.json"))
    assert contents == MEMBERS
    assert all(m.offset % 4096 == 0 for m in members)
    assert manifest["name"] == "é\n"
    # sha256sum of an empty file
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert manifest["members"]["empty.bin"] == {"size": 0, "sha256": empty}


def test_zipfile_reads_it(tmp_path):
    path = tmp_path / "a.sparsec"
    write_artifact(path, {}, MEMBERS)
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None
        assert z.namelist()[0] == "manifest.json"
        assert {n: z.read(n) for n in MEMBERS} == MEMBERS
        assert all(i.compress_type == zipfile.ZIP_STORED for i in z.infolist())
        assert all(i.date_time == (1980, 1, 1, 0, 0, 0) for i in z.infolist())
        assert {i.CRC for i in z.infolist()} >= {zlib.crc32(d) for d in MEMBERS.values()}


def test_same_arguments_same_bytes(tmp_path):
    backwards = dict(reversed(MEMBERS.items()))
    write_artifact(tmp_path / "a", {"b": 1, "a": {"d": 1, "c": 2}}, MEMBERS)
    write_artifact(tmp_path / "b", {"a": {"c": 2, "d": 1}, "b": 1}, backwards)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_base_manifest():
    plan = Plan((Port("x", "float32", (1, 3), ("n", 3)),), (Port("y", "int64", (), ()),), (), 128, b"1234")
    features = {"v4": ("avx512f", "avx"), "v3": ("avx",)}
    manifest = base_manifest(
        plan,
        sparsec_version="1",
        tvm_version="2",
        source_sha256="ab",
        libraries=features,
        passes="nm{n=2,m=4}",
        layers=[{"name": "fc"}],
        choices={"fc": "dense"},
        receipt={"tolerance": 1e-5},
    )
    assert manifest == {
        "format": 1,
        "sparsec_version": "1",
        "tvm_version": "2",
        "source_sha256": "ab",
        "target": {"architecture": "x86_64", "system": "linux"},
        "libraries": [
            {"member": "model.v4.so", "level": "v4", "features": ["avx", "avx512f"]},
            {"member": library_member("v3"), "level": "v3", "features": ["avx"]},
        ],
        "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3], "dims": ["n", 3]}],
        "outputs": [{"name": "y", "dtype": "int64", "shape": [], "dims": []}],
        "arena_size": 128,
        "weights_size": 4,
        "passes": "nm{n=2,m=4}",
        "layers": [{"name": "fc"}],
        "choices": {"fc": "dense"},
        "tiles": {},
        "receipt": {"tolerance": 1e-5},
    }


@pytest.mark.parametrize("name", ["a/b", "../a", "", ".hidden", "é", "a b", "x" * 65, "manifest.json"])
def test_member_names(tmp_path, name):
    with pytest.raises(CompileError, match="cannot write a member named .*: use letters, digits"):
        write_artifact(tmp_path / "a", {}, {name: b""})
    assert os.listdir(tmp_path) == []


def test_member_count(tmp_path):
    write_artifact(tmp_path / "a", {}, {f"m{i}": b"" for i in range(63)})
    assert len(members_of(tmp_path / "a")[1]) == 64
    with pytest.raises(CompileError, match="cannot write 64 members: at most 63 are allowed"):
        write_artifact(tmp_path / "b", {}, {f"m{i}": b"" for i in range(64)})


def test_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "MAX_SIZE", 9000)
    with pytest.raises(
        CompileError, match=r"larger than 4 GiB \(\d+ bytes at weights.bin\), the format's limit"
    ):
        write_artifact(tmp_path / "a", {}, {"weights.bin": bytes(5000)})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800"])
def test_manifest_values(tmp_path, value):
    with pytest.raises(CompileError, match="the manifest holds a value that JSON cannot spell"):
        write_artifact(tmp_path / "a", {"a": value}, {})


@pytest.mark.parametrize("name", ["with space", "new\nline", "ümlaut '\""])
def test_file_names(tmp_path, name):
    write_artifact(tmp_path / name, {}, MEMBERS)
    assert os.listdir(tmp_path) == [name]


def test_mode_follows_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_artifact(tmp_path / "a", {}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# Failures: one line, the old file stays, nothing is left beside it.


@pytest.fixture(params=["unnamed", "named"])
def old(request, tmp_path, monkeypatch):
    """An artifact that exists already, on a file system with and without unnamed files."""
    if request.param == "named":
        without_unnamed_files(monkeypatch)
    path = tmp_path / "a.sparsec"
    path.write_bytes(b"old")
    yield path
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.sparsec"]


def without_unnamed_files(monkeypatch):
    real = os.open

    def fake(path, flags, *rest, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", fake)


def refused(path, reason):
    with pytest.raises(CompileError, match=f"{reason}; what was there before is unchanged") as caught:
        write_artifact(path, {}, MEMBERS)
    assert "\n" not in str(caught.value) and repr(str(path)) in str(caught.value)


def test_named_files_work(tmp_path, monkeypatch):
    without_unnamed_files(monkeypatch)
    write_artifact(tmp_path / "a", {}, MEMBERS)
    assert os.listdir(tmp_path) == ["a"]
    assert set(members_of(tmp_path / "a")[0]) == {"manifest.json", *MEMBERS}


def test_disk_full(old, monkeypatch):
    real, calls = os.write, []

    def full(fd, data):
        calls.append(fd)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    refused(old, "No space left on device")


def test_file_size_limit(old):
    """A real refusal by the kernel, in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, limits[1]))
    try:
        refused(old, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_later_failures(old, monkeypatch, step):
    def broken(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, step, broken)
    refused(old, "Input/output error")


def test_interrupt(old, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_artifact(old, {}, MEMBERS)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / "file" / "a.sparsec", "Not a directory")
    refused(tmp_path / "nowhere" / "a.sparsec", "No such file or directory")
    refused(tmp_path / ("x" * 300), "File name too long")
    with pytest.raises(CompileError, match="/proc/a.sparsec': .*; what was there before is unchanged"):
        write_artifact("/proc/a.sparsec", {}, MEMBERS)


@pytest.mark.parametrize("path", ["/dev/null", "."])
def test_only_regular_files_are_replaced(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompileError, match="it exists and is not a regular file; choose another name"):
        write_artifact(path, {}, MEMBERS)


KILLED = """
import sys
from sparsec.compiler.package import write_artifact
write_artifact(sys.argv[1], {}, {"weights.bin": bytes(1 << 20)})
print("written", flush=True)
for i in range(10**6):
    write_artifact(sys.argv[1], {"i": i}, {"weights.bin": i.to_bytes(4, "little") * (1 << 18)})
"""


def test_killed(tmp_path):
    """SIGKILL at any moment: the file is one whole artifact, and nothing else is there."""
    path = tmp_path / "a.sparsec"
    for delay in (0.0, 0.003, 0.011, 0.029, 0.05):
        child = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        contents, _ = members_of(path)
        sizes = json.loads(contents["manifest.json"])["members"]
        assert sizes["weights.bin"]["size"] == len(contents["weights.bin"]) == 1 << 20
        # The one moment with a name is between link and rename, some microseconds.
        assert len([n for n in os.listdir(tmp_path) if n != "a.sparsec"]) <= 1


def test_nothing_is_imported_that_compiles():
    """Writing a file needs neither tvm nor onnx."""
    code = "import sys, sparsec.compiler.package; print([m for m in ('tvm', 'onnx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_no_member_is_lost_when_bytes_are_views(tmp_path):
    write_artifact(tmp_path / "a", {}, {"weights.bin": memoryview(b"abc")})
    assert members_of(tmp_path / "a")[0]["weights.bin"] == b"abc"
    assert package.library_member("v4") == "model.v4.so"
