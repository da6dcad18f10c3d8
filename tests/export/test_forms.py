"""``sparsec export``: folders, programs and packages, run here and under QEMU, beside ONNX Runtime."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from sparsec.compiler import contents, emulator, export, package
from sparsec.compiler.deploy import Plan
from sparsec.compiler.errors import CompileError
from sparsec.compiler.export import publish
from sparsec.compiler.export.source import DEVICES, open_source, plain_name

SHAPES = {"y": (np.float32, (1, 15)), "n": (np.int64, (5,))}


def said(*command, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def failed(*command, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def check_program(command, feeds, wanted, folder):
    """The program's self-test, and its outputs on other inputs against ONNX Runtime's."""
    lines = said(*command, "--selftest").splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["ok  output y", "ok  output n"]
    number = r"\d\.\de[+-]\d\d"
    assert all(re.search(f": {number} from the stored one, {number} allowed$", line) for line in lines[:2])
    assert re.fullmatch(r"ok  a run takes \d+\.\d{3} ms \(median of \d+\) and \d+ kB", lines[2])
    files = {}
    for name, array in feeds.items():
        array.tofile(folder / name)
    for name in SHAPES:
        files[name] = folder / f"{name}.out"
    pairs = [("--input", folder / name) for name in feeds] + [("--output", path) for path in files.values()]
    said(*command, *(part for pair in pairs for part in pair))
    found = {n: np.fromfile(files[n], dtype).reshape(shape) for n, (dtype, shape) in SHAPES.items()}
    assert np.abs(found["y"] - wanted["y"]).max() < 1e-5
    assert (found["n"] == wanted["n"]).all()


def test_device_folder(exported, network, feeds, ort_run, tmp_path):
    folder = exported("folder")
    said("sha256sum", "-c", "SHA256SUMS", cwd=folder)
    assert said(folder / "selftest").startswith("ok  output y")
    wanted = ort_run(network, feeds)
    check_program([folder / "bin/sparsec-device", folder / "model.sparsec"], feeds, wanted, tmp_path)
    for name, array in feeds.items():
        np.save(tmp_path / f"{name}.npy", array)
    files = [f"{name}={tmp_path / name}.npy" for name in feeds]
    lines = said(sys.executable, "-I", folder / "examples/run.py", *files).splitlines()
    values = np.array(lines[0].split("] ", 1)[1].split(), np.float32)
    assert np.abs(values - wanted["y"].ravel()).max() < 1e-5
    libraries = [folder / "lib/libsparsec.a", "-lpthread", "-ldl", "-lm"]
    source = folder / "examples/classify.c"
    said("cc", "-Werror", f"-I{folder / 'include'}", source, *libraries, "-o", tmp_path / "run")
    again = said(tmp_path / "run", folder / "model.sparsec", *(tmp_path / name for name in feeds))
    assert np.abs(np.array(again.splitlines()[0].split("] ", 1)[1].split(), np.float32) - values).max() < 1e-6


TARGETS = [
    pytest.param("x86:v2", id="x86"),
    pytest.param("arm", id="arm", marks=pytest.mark.qemu("aarch64")),
    pytest.param("riscv64", id="riscv64", marks=[pytest.mark.qemu("riscv64"), pytest.mark.slow]),
]


@pytest.mark.parametrize("target", TARGETS)
def test_static_program(artifact, exported, network, feeds, ort_run, tmp_path, target):
    """It runs in an empty root, so it needs no file, no loader and no library."""
    folder = exported("static", target)
    level = {"x86:v2": "v2", "arm": "neon", "riscv64": "rv64gc"}[target]
    check_program(
        [*(emulator.emulator(level) or []), folder / "bin/tiny-net"], feeds, ort_run(network, feeds), tmp_path
    )
    program = (folder / "bin/tiny-net").read_bytes()
    assert b"ld-linux" not in program and b"ld-musl" not in program
    runtime = len(program) - len(contents.read(artifact(target)).members["weights.bin"])
    assert runtime < 40_000, "kernels, core, libc and the options of the program"


def test_static_library_asks_for_nothing(exported, network, feeds, ort_run, tmp_path):
    """What a program without a system must bring along: memory and string functions, libm."""
    folder = exported("static")
    nm = said("nm", "--undefined-only", "-P", folder / "lib/libtiny-net.a")
    defined = {
        line.split()[0]
        for line in said("nm", "--defined-only", "-P", folder / "lib/libtiny-net.a").splitlines()
    }
    wanted = {line.split()[0] for line in nm.splitlines() if len(line.split()) > 1} - defined
    assert wanted <= {"memcpy", "memset", "memmove", "memcmp", "strlen", "vsnprintf", "expf"}
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{folder / 'include'}", "-DMEMORY=65536"]
    library = folder / "lib/libtiny-net.a"
    said("cc", *flags, folder / "examples/embedded.c", library, "-lm", "-o", tmp_path / "embedded")
    y, n = said(tmp_path / "embedded").splitlines()
    zeros = {name: np.zeros_like(array) for name, array in feeds.items()}
    expected = ort_run(network, zeros)
    found = np.frombuffer(bytes.fromhex(y.removeprefix("y:")), np.float32)
    assert np.abs(found - expected["y"].ravel()).max() < 1e-6
    assert bytes.fromhex(n.removeprefix("n:")) == expected["n"].tobytes()


def test_a_wrong_result_fails_the_selftest(artifact, tmp_path):
    """The sample asks for something else: both programs notice, so the stored output is really compared."""
    found = contents.read(artifact())
    sample = bytearray(found.members["sample.bin"])
    sample[-1] ^= 1  # the last byte of the int64 output
    sample[-60 - 40 + 2] ^= 0x40  # a float of y
    manifest = json.loads(found.manifest_bytes)
    package.write_artifact(
        tmp_path / "wrong.sparsec", manifest, {**found.members, "sample.bin": bytes(sample)}
    )
    source = open_source(tmp_path / "wrong.sparsec", None, None, None)
    for form in ("folder", "static"):
        export.export(source, form, tmp_path / form)
        done = subprocess.run(["sh", tmp_path / form / "selftest"], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stdout.count("--  output") == 2
        assert done.stderr == "selftest: the model computes something else here\n"


def test_damage_is_refused_by_the_program(exported, tmp_path):
    folder = exported("folder")
    data = bytearray((folder / "model.sparsec").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    assert "damaged artifact" in failed(folder / "bin/sparsec-device", tmp_path / "damaged", "--selftest")


def test_a_required_signature_in_c(artifact, exported, tmp_path):
    pytest.importorskip("cryptography", reason="not installed: pip install 'sparsec[sign]'")
    from sparsec.compiler import signing

    for name in ("ours", "theirs"):
        signing.new_key(tmp_path / name)
    signed, program = tmp_path / "signed", exported("folder") / "bin/sparsec-device"
    signing.sign(artifact(), signing.private_key(tmp_path / "ours", str), signed)

    def required(key):
        return "--require-signature", tmp_path / key, "--selftest"

    assert said(program, signed, *required("ours.pub")).startswith("ok  output y")
    assert said(program, signed, "--selftest").startswith("ok  output y")
    assert "it is signed by the key" in failed(program, signed, *required("theirs.pub"))
    assert "it is not signed" in failed(program, artifact(), *required("ours.pub"))
    assert "not an Ed25519 public key in PEM" in failed(program, signed, *required("ours"))
    found = contents.read(signed)
    manifest = found.manifest_bytes.replace(b'"tvm_version": "', b'"tvm_version": "x', 1)
    members = found.members | {"signature.bin": found.signature}
    package.publish(tmp_path / "forged", package.layout(manifest, members))
    assert "is wrong: it was changed after signing" in failed(
        program, tmp_path / "forged", *required("ours.pub")
    )


def test_wrong_usage_of_the_programs(exported, tmp_path):
    program = exported("static") / "bin/tiny-net"
    for arguments in ([], ["--what"], ["--input"], ["--selftest", "x"]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"usage: {program} --selftest")
    assert (
        failed(program, "--input", "a")
        == "the model takes 2 inputs and gives 2 outputs, found 1 and 0 files\n"
    )
    assert "no-file: No such file" in failed(program, "--input", "no-file", "--input", "b")
    assert failed(program, "--input", tmp_path, "--input", "b") == f"{tmp_path}: Is a directory\n"
    for size in (0, 3, 2**16 - 1, 2**16, 200_000):
        (tmp_path / "x").write_bytes(bytes(size))
        said_ = failed(program, "--input", tmp_path / "x", "--input", "b")
        assert f"takes 756 bytes, found {size}\n" in said_
    (tmp_path / "x").write_bytes(bytes(756))
    (tmp_path / "i").write_bytes(bytes(40))
    inputs = ("--input", tmp_path / "x", "--input", tmp_path / "i")
    assert failed(program, *inputs, "--output", "/dev/full") == "/dev/full: No space left on device\n"


def test_a_cpu_without_the_features_is_told_so(exported):
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("not installed: qemu-x86_64 (apt-get install qemu-user-static)")
    program = exported("static") / "bin/tiny-net"
    said_ = failed(qemu, "-cpu", "Conroe", program, "--selftest")
    assert "this CPU lacks " in said_ and said_.endswith(", which the model was compiled for\n")


def test_an_artifact_goes_to_a_device(artifact, exported, tmp_path):
    """``deploy`` exports it first; ssh is a shell on this machine here.  A static program follows it."""
    (tmp_path / "ssh").write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    (tmp_path / "ssh").chmod(0o755)
    command = [sys.executable, "-P", "-m", "sparsec", "deploy", artifact(), "here", "--ssh", tmp_path / "ssh"]
    said(*command, "--prefix", tmp_path / "place", "--json")
    current = tmp_path / "place/current"
    assert current.readlink().name == Plan(exported("folder")).version, "exported anew, the same bytes"
    assert said(current / "selftest").startswith("ok  output y")
    out = said("sh", exported("static") / "install.sh", "--prefix", tmp_path / "place")
    assert "ok  output y" in out and "installed " in out
    said(current / "bin/tiny-net", "--selftest")


# Packages of the system ---------------------------------------------------------------------------------


def test_debian_package(exported, tmp_path):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("not installed: dpkg-deb")
    (path,) = exported("system").glob("*.deb")
    fields = dict(line.split(": ", 1) for line in said("dpkg-deb", "-f", path).splitlines() if line[0] != " ")
    assert fields["Package"] == "sparsec-tiny-net" and fields["Architecture"] == "amd64"
    assert path.name == f"sparsec-tiny-net_{fields['Version']}_amd64.deb"
    said("dpkg-deb", "-x", path, tmp_path / "root")
    said("dpkg-deb", "-e", path, tmp_path / "control")
    said("md5sum", "-c", tmp_path / "control/md5sums", cwd=tmp_path / "root")
    assert said(tmp_path / "root/usr/lib/sparsec/tiny-net/selftest").startswith("ok  output y")
    unit = tmp_path / "root/usr/lib/systemd/system/sparsec-tiny-net.service"
    assert "ExecStart=/usr/lib/sparsec/tiny-net/selftest\n" in unit.read_text()
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        complaints = [line for line in done.stderr.splitlines() if unit.name in line]
        assert [line for line in complaints if "selftest is not executable" not in line] == []


def test_container_image(exported, tmp_path):
    """Every digest and size of the OCI layout; the program of the layer runs alone in its root."""
    with tarfile.open(exported("system") / "tiny-net.oci.tar") as opened:
        files = {m.name: opened.extractfile(m).read() for m in opened if m.isfile()}
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}

    def blob(descriptor) -> bytes:
        data = files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert len(data) == descriptor["size"]
        assert descriptor["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
        return data

    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["platform"] == {"architecture": "amd64", "os": "linux"}
    manifest = json.loads(blob(entry))
    config, layer = json.loads(blob(manifest["config"])), blob(manifest["layers"][0])
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
        opened.extractall(tmp_path, filter="tar")
    command = [*config["config"]["Entrypoint"], *config["config"]["Cmd"]]
    if os.geteuid():
        pytest.skip("running it in a root of its own needs root")
    assert said("chroot", tmp_path, *command).startswith("ok  output y")


def test_the_same_artifact_gives_the_same_bytes(artifact, exported, tmp_path):
    for form in ("static", "system"):
        export.export(open_source(artifact(), None, None, None), form, tmp_path / form)
        sums = (tmp_path / form / "SHA256SUMS").read_text()
        assert sums == (exported(form) / "SHA256SUMS").read_text()


# Sources and folders -------------------------------------------------------------------------------------


def test_what_cannot_be_exported(artifact, network, tmp_path):
    from sparsec.compiler.pipeline import compile_model
    from sparsec.compiler.request import CompileRequest

    with pytest.raises(CompileError, match="runs on x86-64-linux, not on aarch64-linux; compile it for that"):
        open_source(artifact(), "aarch64-linux", None, None)
    with pytest.raises(CompileError, match="has the levels v2 for x86-64-linux, not v4"):
        open_source(artifact(), None, None, "v4")
    with pytest.raises(CompileError, match="'---' needs two letters or digits in its name; give --name"):
        open_source(artifact(), None, "---", None)
    found = contents.read(artifact())
    foreign = {**json.loads(found.manifest_bytes), "target": {"architecture": "vax", "system": "linux"}}
    package.write_artifact(tmp_path / "foreign", foreign, found.members)
    with pytest.raises(CompileError, match="has no code for a CPU"):
        open_source(tmp_path / "foreign", None, None, None)
    compile_model(CompileRequest(str(network), str(tmp_path / "plain"), target="x86:v2"))
    with pytest.raises(CompileError, match=r"has no sample.bin: compile the model with --exportable"):
        open_source(tmp_path / "plain", None, None, None)


def test_names():
    assert plain_name("Tiny Net") == "tiny-net"
    assert plain_name("..résumé_v2..") == "r-sum-v2"


def test_the_devices_of_the_command_line():
    from sparsec.compiler.cli.export import DEVICES as offered

    assert offered == tuple(DEVICES)


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    files = {f"a/{i}": publish.File(b"x" * 100) for i in range(5)}
    real, calls = os.fsync, []

    def full(fd):
        calls.append(fd)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CompileError, match="No space left on device; nothing is left there"):
        publish.write_folder(tmp_path / "out", files)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish.write_folder(tmp_path / "out", files)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    publish.write_folder(tmp_path / "out", files)
    with pytest.raises(CompileError, match="exists and is not an empty folder"):
        publish.write_folder(tmp_path / "out", files)
    assert (tmp_path / "out/a/4").read_bytes() == b"x" * 100


def test_the_command(artifact, tmp_path):
    command = [
        sys.executable,
        "-P",
        "-m",
        "sparsec",
        "export",
        artifact(),
        "--to",
        tmp_path / "out",
        "--static",
    ]
    assert said(*command).startswith(f"wrote {tmp_path / 'out'}, ")
    assert (tmp_path / "out/bin/tiny-net").exists()
