"""One file for many machines: which library libsparsec takes on emulated CPUs, or why it takes none."""

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from sparsec.compiler import contents
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest
from sparsec.runtime import build, cpu
from sparsec.runtime.artifact import choose

# architecture -> (QEMU, Debian's package of its libc, where that is)
EMULATED = {
    "x86_64": ("x86_64", None, "/"),
    "aarch64": ("aarch64", "libc6-arm64-cross", "/usr/aarch64-linux-gnu"),
    "armv7": ("arm", "libc6-armhf-cross", "/usr/arm-linux-gnueabihf"),
    "riscv64": ("riscv64", "libc6-riscv64-cross", "/usr/riscv64-linux-gnu"),
}
ALL = "arm,arm:dot,arm:i8mm,arm:bf16,armv7,riscv64,riscv64:rvv,x86,x86:v2"
CASES = [
    ("x86_64", "Nehalem", "v2"),
    ("x86_64", "Haswell", "v3"),
    ("x86_64", "qemu64", "this CPU lacks popcnt, sse4.1, sse4.2, ssse3, which level v2 needs"),
    ("aarch64", "cortex-a53", "neon"),
    ("aarch64", "cortex-a76", "neondot"),
    ("aarch64", "max", "neonbf16"),
    ("armv7", "cortex-a7", "armv7"),
    ("armv7", "cortex-a8", "this CPU lacks vfp4, which level armv7 needs; compile for a lower level"),
    ("riscv64", "rv64", "rv64gc"),
]


@pytest.fixture(scope="module")
def fat(tmp_path_factory):
    """The file, its input, and ONNX Runtime's output."""
    folder = tmp_path_factory.mktemp("fat")
    rng = np.random.default_rng(8)
    weight = rng.standard_normal((33, 31)).astype(np.float32)
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[5,33] x) => (float[5,31] y) {y = MatMul(x, w)}'
    )
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(graph, folder / "model.onnx")
    out = str(folder / "model.sparsec")
    compile_model(CompileRequest(str(folder / "model.onnx"), out, target=ALL, verify=False))
    x = rng.standard_normal((5, 33)).astype(np.float32)
    x.tofile(folder / "x")
    return out, folder / "x", x.astype(np.float64) @ weight


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """``program(architecture)``: tests/compiler/loads.c for it, made once."""
    made = {}

    def make(machine: str) -> Path:
        if machine not in made:
            folder = tmp_path_factory.mktemp(machine)
            target = "" if machine == cpu.architecture() else machine
            archive, _ = build.build_library(folder, target)
            source = Path(__file__).with_name("loads.c")
            flags = [f"-I{build.SOURCES}", "-o", "loads", str(source), str(archive), "-ldl", "-lpthread"]
            build.run([*build.compiler(target), *flags], folder)
            made[machine] = folder / "loads"
        return made[machine]

    return make


@pytest.mark.parametrize(
    ("machine", "model", "said"),
    [
        pytest.param(*case, marks=pytest.mark.qemu(EMULATED[case[0]][0]), id=f"{case[0]}-{case[1]}")
        for case in CASES
    ],
)
def test_the_library_that_is_taken(fat, program, tmp_path, machine, model, said):
    path, x, wanted = fat
    name, package, libraries = EMULATED[machine]
    if not Path(libraries).is_dir():
        pytest.skip(f"not installed: {package} (apt-get install {package})")
    qemu = [f"qemu-{name}-static", "-cpu", model, "-L", libraries]
    done = subprocess.run([*qemu, program(machine), path, x, tmp_path / "y"], capture_output=True, text=True)
    assert said in done.stdout and done.stdout.count("\n") == 1, done.stderr
    if "lacks" in said:
        assert done.returncode == 1 and not (tmp_path / "y").exists()
    else:
        assert done.returncode == 0
        y = np.fromfile(tmp_path / "y", np.float32).reshape(5, 31)
        assert np.abs(y - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("machine", "offered", "level"),
    [
        ("aarch64", (), "neon"),
        ("aarch64", ("bf16",), "neon"),
        ("aarch64", ("dotprod",), "neondot"),
        ("aarch64", ("dotprod", "i8mm"), "neoni8mm"),
        ("aarch64", ("dotprod", "i8mm", "bf16"), "neonbf16"),
        ("armv7", ("neon", "vfp4"), "armv7"),
        ("riscv64", (), "rv64gc"),
        ("riscv64", ("v",), "rv64gcv"),
        ("x86_64", cpu.V2, "v2"),
        ("x86_64", cpu.V3, "v3"),
        ("x86_64", cpu.V4, "v4"),
    ],
)
def test_the_loader_in_python_takes_the_best(fat, monkeypatch, machine, offered, level):
    monkeypatch.setattr(cpu, "architecture", lambda: machine)
    monkeypatch.setattr(cpu, "features", lambda: frozenset(offered))
    assert choose(contents.read(Path(fat[0])).manifest).level == level


MUSL = Path("/lib/ld-musl-x86_64.so.1")


@pytest.mark.isa("sse4_2")
@pytest.mark.skipif(not MUSL.exists(), reason="not installed: musl (apt-get install musl)")
def test_musl(fat, program, tmp_path):
    """What is linked for glibc loads where musl is the libc: it names no library that musl does not have."""
    path, x, wanted = fat
    done = subprocess.run([MUSL, program("x86_64"), path, x, tmp_path / "y"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    y = np.fromfile(tmp_path / "y", np.float32).reshape(5, 31)
    assert np.abs(y - wanted).max() < 1e-5 * np.abs(wanted).max()
