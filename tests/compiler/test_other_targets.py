"""Artifacts for aarch64, armv7 and riscv64, made here: right under QEMU, and refused by this machine."""

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tvm

from benchmarks import loops
from sparsec.compiler import emulator, native
from sparsec.compiler.errors import CompileError
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest
from sparsec.runtime import TargetError, cpu, load
from sparsec.schedules.layout import Pattern
from sparsec.schedules.target import LEVELS

TARGETS = [
    pytest.param("arm", id="arm", marks=pytest.mark.qemu("aarch64")),
    pytest.param("riscv64", id="riscv64", marks=pytest.mark.qemu("riscv64")),
    pytest.param("armv7", id="armv7", marks=pytest.mark.qemu("arm")),
    pytest.param("riscv64:rvv", id="rvv", marks=pytest.mark.qemu("riscv64")),
]
MACHINES = {  # e_machine, architecture, what QEMU calls it
    "arm": (b"\xb7\x00", "aarch64", "aarch64"),
    "riscv64": (b"\xf3\x00", "riscv64", "riscv64"),
    "riscv64:rvv": (b"\xf3\x00", "riscv64", "riscv64"),
    "armv7": (b"\x28\x00", "armv7", "arm"),
}

# Every rule of the schedules, on sizes that no vector divides.
LAYERS = """(float[2,17,33] x, float[1,5,9,7] i) => (y, z) {
    a = LayerNormalization <axis = -1> (x, scale, shift)
    b = MatMul(a, w)
    c = Erf(b)
    d = Softmax <axis = -1> (c)
    t = Transpose <perm = [0, 2, 1]> (d)
    e = MatMul(d, t)
    f = Tanh(e)
    y = ReduceSum <keepdims = 0> (f, axes)
    g = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (i, k)
    z = Sigmoid(g)
}"""


def constants(shapes: dict) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(3)
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return [onnx.numpy_helper.from_array(array, name) for name, array in made.items()]


@pytest.fixture
def layers(text_graph, tmp_path):
    model = text_graph(LAYERS)
    model.graph.initializer.extend(constants({"scale": 33, "shift": 33, "w": (33, 31), "k": (15, 5, 3, 3)}))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axes"))
    return saved(model, tmp_path)


@pytest.fixture
def sparse(text_graph, tmp_path):
    """One layer of every packed form: shared, lanes, gather, strips."""
    patterns = {"s": Pattern(2, 4, 16), "l": Pattern(2, 4), "g": Pattern(2, 6), "r": Pattern(1, 4, 4)}
    model = text_graph("""(float[3,96] x, float[33,96] r) => (a, b, c, d) {
        a = MatMul(x, s)
        b = MatMul(x, l)
        c = MatMul(x, g)
        d = MatMul(r, r4)
    }""")
    rng = np.random.default_rng(4)
    for (_, p), name in zip(patterns.items(), ("s", "l", "g", "r4"), strict=True):
        kept = np.tile(np.arange(p.m) < p.n, 96 // p.m)
        weight = np.stack([np.roll(kept, i // p.block) for i in range(48)], 1) * rng.standard_normal((96, 48))
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), name))
    return saved(model, tmp_path)


@pytest.fixture
def product(text_graph, tmp_path):
    model = text_graph("(float[5,33] x) => (y) { a = MatMul(x, w) y = Relu(a) }")
    model.graph.initializer.extend(constants({"w": (33, 31)}))
    return saved(model, tmp_path)


def saved(model: onnx.ModelProto, folder) -> str:
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def compiled(model: str, target: str, **options) -> tuple[str, dict]:
    out = model.replace(".onnx", f".{target}")
    return out, compile_model(CompileRequest(model, out, target=target, **options))


@pytest.mark.parametrize("target", TARGETS)
def test_every_rule(layers, target):
    out, report = compiled(layers, target)
    receipt, (level,) = report["receipt"], report["levels"]
    assert receipt["levels"] == receipt["emulated"] == [level] and "not_run" not in receipt
    assert set(receipt["max_error"]) == {"y", "z"}
    assert all(found["within"] for found in receipt["max_error"].values())
    wanted = f"artifact is for {MACHINES[target][1]} linux, this machine is {cpu.architecture()} linux"
    with pytest.raises(TargetError, match=wanted):
        load(out)


@pytest.mark.parametrize("target", TARGETS)
def test_every_packed_form(sparse, target, tmp_path):
    choices = tmp_path / "choices.json"
    choices.write_text(json.dumps({f"n{i}": "sparse" for i in range(4)}))
    _, report = compiled(sparse, target, choices=str(choices))
    assert [layer["kernel"] for layer in report["layers"]] == ["sparse"] * 4
    assert [layer["pattern"] for layer in report["layers"]] == ["2:4x16", "2:4", "2:6", "1:4x4"]
    assert all(found["within"] for found in report["receipt"]["max_error"].values())


@pytest.mark.parametrize("target", TARGETS[:2])
def test_wrong_kernels_are_seen(layers, target, monkeypatch):
    real = emulator.run
    monkeypatch.setattr(emulator, "run", lambda *args, **kw: {n: 2 * a for n, a in real(*args, **kw).items()})
    with pytest.raises(CompileError, match="differs from ONNX Runtime by"):
        compiled(layers, target)


@pytest.mark.parametrize("target", TARGETS[:3])
def test_library(layers, target, monkeypatch):
    """The library's architecture, and that it asks for the oldest glibc's symbols alone."""
    kept = []
    real = native._check_library
    monkeypatch.setattr(
        native, "_check_library", lambda data, *names: (kept.append(data), real(data, *names))
    )
    monkeypatch.setattr(emulator.shutil, "which", lambda name: None)
    _, report = compiled(layers, target)
    machine, _, name = MACHINES[target]
    assert [data[18:20] for data in kept] == [machine]
    wanted = [tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_([\d.]+)", kept[0])]
    assert max(wanted) <= (2, 27)
    needed = native.elf.symbols(kept[0]).needed
    assert target != "arm" or set(needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    (why,) = report["receipt"]["not_run"].values()
    assert re.search(f"has no qemu-{name} .*apt-get install qemu-user-static", why)
    assert report["receipt"]["levels"] == [] and report["receipt"]["max_error"] == {}


def test_a_foreign_machine_refuses_x86(product, monkeypatch):
    out, _ = compiled(product, "x86:v2", verify=False)
    monkeypatch.setattr(cpu, "architecture", lambda: "aarch64")
    with pytest.raises(TargetError, match="artifact is for x86_64 linux, this machine is aarch64 linux"):
        load(out)


@pytest.mark.qemu("aarch64")
def test_a_run_that_fails(text_graph, tmp_path):
    """The runner's words become the error, here those about an index out of range."""
    model = saved(text_graph("(float[4,3] x, int64[2] i) => (y) { y = Gather(x, i) }"), tmp_path)
    np.savez(tmp_path / "calib.npz", x=np.zeros((4, 3), np.float32), i=np.array([0, 9]))
    with pytest.raises(
        CompileError, match="kernels for neon failed under emulation: run: .*an index is outside"
    ):
        compiled(model, "arm", calib=str(tmp_path / "calib.npz"))


# Several targets in one file -----------------------------------------------------------------------------

FAT = pytest.mark.qemu("aarch64", "riscv64")


@FAT
def test_one_packing_for_all(product):
    """The weights are there once, whatever the architectures; every library is compared."""
    _, alone = compiled(product, "arm")
    out, report = compiled(product, "arm,x86:v2,riscv64")
    assert report["levels"] == ["neon", "v2", "rv64gc"]
    assert set(report["receipt"]["levels"]) == set(report["levels"])
    assert report["packings"] == [["neon", "v2", "rv64gc"]]
    assert report["weights_bytes"] == alone["weights_bytes"]
    with load(out) as model:
        assert model.level == "v2"
        assert "architecture" not in model.manifest["target"] and "packings" not in model.manifest
        machines = {m["level"]: m["architecture"] for m in model.manifest["libraries"]}
    assert machines == {"neon": "aarch64", "v2": "x86_64", "rv64gc": "riscv64"}


@FAT
def test_two_packings(sparse, tmp_path):
    """Per-row patterns are packed twice, all else once; the manifest says for whom."""
    choices = tmp_path / "choices.json"
    choices.write_text(json.dumps({f"n{i}": "sparse" for i in range(4)}))
    sizes = {t: compiled(sparse, t, choices=str(choices))[1]["weights_bytes"] for t in ("x86:v3", "arm")}
    out, report = compiled(sparse, "x86:v3,arm", choices=str(choices))
    assert report["packings"] == [["v3"], ["neon"]]
    assert report["receipt"]["levels"] == (["v3", "neon"] if "v3" in cpu.levels() else ["neon"])
    assert max(sizes.values()) < report["weights_bytes"] < sum(sizes.values())
    if "v3" in cpu.levels():
        with load(out) as model:
            assert model.level == "v3" and model.manifest["packings"] == [["v3"], ["neon"]]


def test_a_third_machine_refuses(product, monkeypatch):
    out, _ = compiled(product, "x86:v2,arm", verify=False)
    monkeypatch.setattr(cpu, "architecture", lambda: "riscv64")
    wanted = "the artifact is for x86_64 or aarch64 linux, this machine is riscv64 linux; compile it for this"
    with pytest.raises(TargetError, match=wanted):
        load(out)


# Machine code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [v for v, isa in loops.ISAS.items() if isa.precision == "float32"])
def test_inner_loops(level):
    """Vectors alone, nothing spilled, and as many multiply-adds for each load as there can be, nearly."""
    for name, products, least in (
        ("gemm dense", 24, 0.95),
        ("gemm 2:4x16", 24, 0.95),
        ("gemm 2:4x4", 16, 0.8),
    ):
        found = loops.row(level, name, loops.cases()[name])
        if level == "armv7":  # half the registers
            products, least = 8, 0.85
        assert (found["multiply_adds"], found["spilled"]) == (products, 0), found
        assert least * found["best"] <= found["ratio"] <= found["best"], found


def test_loops_that_spill_are_seen(monkeypatch):
    """A tile of more sums than there are registers."""
    cpu = replace(LEVELS["armv7"], registers=24)
    monkeypatch.setitem(loops.LEVELS, "armv7", cpu)
    assert loops.row("armv7", "gemm dense", loops.cases()["gemm dense"])["spilled"] > 0


@pytest.mark.parametrize("shape", [(4, 64), (3, 129)])
def test_functions_are_vectors_on_neon(shape):
    from tvm import te, tirx

    from sparsec.schedules import math, schedule

    math.install()
    x = te.placeholder(shape, "float32", name="x")
    y = te.compute(shape, lambda i, j: tirx.erf(tirx.exp(x[i, j])), name="y")
    func = te.create_prim_func([x, y])
    mod = schedule(tvm.IRModule({"main": func}), LEVELS["neon"])
    text = tvm.tirx.build(mod, target=LEVELS["neon"].tvm_target(), pipeline="s_tir").inspect_source("asm")
    assert "fmla" in text and not re.search(r"\bbl\s+(expf|erff)\b", text)
