"""From plan to library: what is exported, what is refused, that the bytes are always the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec.compiler import elf, native
from sparsec.compiler.errors import CompileError
from sparsec.compiler.native import c_string, link, plan_source
from sparsec.compiler.package import base_manifest, write_artifact
from sparsec.compiler.plan import Plan, Port, Step, TensorRef
from sparsec.runtime import InputError, RunError, build


def vector(space, where=0, n=64, dtype="float32"):
    return TensorRef(space, where, (n,), dtype)


def plan_of(*steps, **changes):
    fields = {
        "inputs": (Port("x", "float32", (64,), (64,)),),
        "outputs": (Port("y", "float32", (64,), (64,)),),
        "steps": steps or (Step("grow", (vector("input"), vector("output")), "Exp_0"),),
        "arena_size": 256,
        "weights": b"",
    }
    return Plan(**{**fields, **changes})


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Kernels: ``grow`` (exp, needs libm), ``spin`` (parallel, adds 1), ``hungry`` (workspace),
    ``denormal`` (halves x)."""
    import tvm
    from tvm.script import tirx as T
    from tvm.target import Target

    @T.prim_func(s_tir=True)
    def grow(X: T.Buffer((64,), "float32"), Y: T.Buffer((64,), "float32")):
        T.func_attr({"global_symbol": "grow", "tirx.noalias": True})
        for i in T.serial(64):
            with T.sblock("element"):
                Y[i] = T.exp(X[i])

    @T.prim_func(s_tir=True)
    def spin(X: T.Buffer((64,), "float32"), Y: T.Buffer((64,), "float32")):
        T.func_attr({"global_symbol": "spin", "tirx.noalias": True})
        for i in T.parallel(8):
            for j in T.serial(8):
                with T.sblock("element"):
                    Y[i * 8 + j] = X[i * 8 + j] + T.float32(1)

    @T.prim_func(s_tir=True)
    def hungry(X: T.Buffer((64,), "float32"), Y: T.Buffer((64,), "float32")):
        T.func_attr({"global_symbol": "hungry", "tirx.noalias": True})
        for i in T.parallel(64):
            with T.sblock("element"):
                room = T.sblock_alloc_buffer((5000,), "float32")
                for j in T.serial(5000):
                    room[j] = X[i] * T.cast(j, "float32")
                Y[i] = room[4999]

    @T.prim_func(s_tir=True)
    def denormal(X: T.Buffer((64,), "float32"), Y: T.Buffer((64,), "float32")):
        T.func_attr({"global_symbol": "denormal", "tirx.noalias": True})
        for i in T.parallel(64):
            with T.sblock("element"):
                Y[i] = X[i] * T.float32(0.5)

    target = Target({"kind": "llvm", "mcpu": "x86-64-v2", "mtriple": "x86_64-unknown-linux-gnu"})
    paths = []
    for function in (grow, spin, hungry, denormal):
        name = str(function.attrs["global_symbol"])
        paths.append(tmp_path_factory.mktemp("kernels") / f"{name}.o")
        tvm.tirx.build(tvm.IRModule({name: function}), target=target).write_to_file(str(paths[-1]), "o")
    return paths


def built(folder, plan, objects, workspace=20032):
    """The plan as a loaded model."""
    link(plan, objects, workspace, folder / "model.so", "v2")
    manifest = base_manifest(
        plan, sparsec_version="0", tvm_version="0", source_sha256="0" * 64, libraries={"v2": ()}
    )
    members = {"model.v2.so": (folder / "model.so").read_bytes()}
    if plan.weights:
        members["weights.bin"] = plan.weights
    write_artifact(folder / "a.sparsec", manifest, members)
    return sparsec.load(folder / "a.sparsec")


X = np.linspace(-3, 3, 64).astype("float32")


def test_numbers(tmp_path, objects):
    y = built(tmp_path, plan_of(), objects)(X)["y"]
    assert np.abs(y - np.exp(X.astype("float64"))).max() < 2e-6


def test_steps_share_kernels_and_arena(tmp_path, objects):
    steps = (
        Step("spin", (vector("input"), vector("arena")), "a"),
        Step("spin", (vector("arena"), vector("output")), "b"),
        Step("spin", (vector("output"), vector("arena")), "c"),  # an output is memory like any other
        Step("denormal", (vector("arena"), vector("output")), "d"),
    )
    for threads in (1, 2):
        y = built(tmp_path, plan_of(*steps), objects).context(threads)(X)["y"]
        assert np.abs(y - (X.astype("float64") + 3) / 2).max() < 1e-6


def test_weights(tmp_path, objects):
    weights = np.arange(128, dtype="float32")
    step = Step("spin", (vector("weight", 256), vector("output")), "a")
    y = built(tmp_path, plan_of(step, inputs=(), weights=weights.tobytes()), objects)()["y"]
    assert (y == weights[64:] + 1).all()


def test_workspace_too_small(tmp_path, objects):
    step = Step("hungry", (vector("input"), vector("output")), "Mul_3")
    text = "step 'Mul_3' failed: a kernel asked for 20000 bytes of workspace with 0 of 19968 planned bytes"
    for threads in (1, 2):
        with pytest.raises(RunError, match=text):
            built(tmp_path, plan_of(step), objects, workspace=19968).context(threads)(X)
    y = built(tmp_path, plan_of(step), objects, workspace=20032).context(2)(X)["y"]
    assert (y == X * 4999).all()


def test_kernel_refuses_shapes(tmp_path, objects):
    """The kernel's own words arrive, and the context works on with the next model."""
    step = Step("grow", (vector("arena", n=32), vector("output")), "Exp_0")
    with pytest.raises(RunError, match=r"step 'Exp_0' failed: ValueError: .*shape.*expected.*64") as caught:
        built(tmp_path, plan_of(step, inputs=()), objects)()
    assert "\n" not in str(caught.value)


def test_floating_point_state(tmp_path, objects):
    """The caller's flush-to-zero has no influence, on no thread, and is still on afterwards."""
    import torch

    step = Step("denormal", (vector("input"), vector("output")), "a")
    model = built(tmp_path, plan_of(step), objects)
    tiny = np.full(64, np.finfo("float32").tiny)
    assert torch.set_flush_denormal(True)
    try:
        results = [model.context(threads)(tiny)["y"].view("uint32") for threads in (1, 2)]
        flushed = float(torch.from_numpy(tiny[:1]) * 0.5)
    finally:
        torch.set_flush_denormal(False)
    assert flushed == 0
    for bits in results:
        assert (bits == 0x400000).all()


def test_exports_one_symbol(tmp_path, objects):
    link(plan_of(), objects, 0, tmp_path / "a.so", "v3")
    found = elf.symbols((tmp_path / "a.so").read_bytes())
    assert found.defined == {"sparsec_module_v1"}
    assert "pthread_create" in found.undefined
    assert set(found.needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def shared(folder, text, *flags):
    (folder / "a.c").write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", *flags, "a.c", "-o", "a.so"], cwd=folder, check=True)
    return (folder / "a.so").read_bytes()


def test_library_is_checked(tmp_path):
    """The last look at what the linker made."""
    more = shared(tmp_path, "int sparsec_module_v1, stray;")
    with pytest.raises(CompileError, match="must export sparsec_module_v1 alone, found also stray"):
        native._check_library(more)
    needy = shared(tmp_path, "int sparsec_module_v1;", "-Wl,--no-as-needed", "-lgcc_s")
    with pytest.raises(CompileError, match=r"the linked library needs libgcc_s.so.1; only libc, libm,"):
        native._check_library(needy)
    with pytest.raises(CompileError, match="must export sparsec_module_v1 alone, found nothing"):
        native._check_library(shared(tmp_path, ""))


def test_core_is_small(tmp_path, objects):
    link(plan_of(), objects[:1], 0, tmp_path / "a.so", "v3")
    assert (tmp_path / "a.so").stat().st_size < 100_000


def test_same_arguments_same_bytes(tmp_path, objects, monkeypatch):
    link(plan_of(), objects, 64, tmp_path / "a.so", "v3")
    native._core_objects.cache_clear()
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "other"))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    contents = [Path(o).read_bytes() for o in objects]
    link(plan_of(), contents, 64, tmp_path / "other" / "b.so", "v3")
    data = (tmp_path / "a.so").read_bytes()
    assert data == (tmp_path / "other" / "b.so").read_bytes()
    assert str(tmp_path).encode() not in data and b"/tmp/" not in data


@pytest.mark.slow
def test_ziglang(tmp_path, objects, monkeypatch):
    """Without a compiler of the system."""
    pytest.importorskip("ziglang")
    monkeypatch.delenv("CC", raising=False)
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("cc", "ar") else real(name))
    assert build.compiler()[1:4] == ["-m", "ziglang", "cc"]
    y = built(tmp_path, plan_of(), objects)(X)["y"]
    assert np.abs(y - np.exp(X.astype("float64"))).max() < 2e-6
    assert elf.symbols((tmp_path / "model.so").read_bytes()).defined == {"sparsec_module_v1"}


def test_no_compiler(tmp_path, objects, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(CompileError, match="no C compiler found: .* run: python -m pip install ziglang"):
        link(plan_of(), objects, 0, tmp_path / "a.so", "v3")
    monkeypatch.setenv("CC", "no-such-cc -O3")
    with pytest.raises(CompileError, match="the C compiler 'no-such-cc', named by .CC, is not installed"):
        link(plan_of(), objects, 0, tmp_path / "a.so", "v3")


def test_cc_is_honoured(tmp_path, objects, monkeypatch):
    fake = tmp_path / "my cc"
    fake.write_text("#!/bin/sh\necho 'x.c:1: error: no luck' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CC", f"'{fake}' -m64")
    with pytest.raises(CompileError, match="my cc failed with exit code 3: x.c:1: error: no luck"):
        link(plan_of(), objects, 0, tmp_path / "a.so", "v3")


def compiled(folder, text):
    (folder / "k.c").write_text(text)
    subprocess.run(["cc", "-c", "-fPIC", "k.c", "-o", "k.o"], cwd=folder, check=True)
    return (folder / "k.o").read_bytes()


def test_unknown_symbol(tmp_path):
    code = "int not_on_any_device(void); int __tvm_ffi_grow(void) { return not_on_any_device(); }"
    with pytest.raises(
        CompileError, match="a kernel needs the symbol 'not_on_any_device', which neither libc"
    ):
        link(plan_of(), [compiled(tmp_path, code)], 0, tmp_path / "a.so", "v3")
    assert not (tmp_path / "a.so").exists()


NESTED = """
typedef struct { void *sync; int tasks; } env;
typedef int task(int, env *, void *);
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(task *, void *, int);
typedef struct { int type, pad; struct { float *data; } *tensor; } value;
static int inner(int k, env *e, void *y) {
    __atomic_fetch_add((int *)y + k % 64, 1, __ATOMIC_RELAXED);
    return e->tasks != 3;
}
static int outer(int k, env *e, void *y) { (void)k, (void)e; return __TVMBackendParallelLaunch(inner, y, 3); }
static int bad(int k, env *e, void *y) { (void)e, (void)y; return k == 4; }
int __tvm_ffi_grow(void *self, value *args, int count, void *result) {
    (void)self, (void)count, (void)result;
    for (int i = 0; i < 64; i++) ((int *)args[1].tensor->data)[i] = 0;
    if (args[0].tensor->data[0] > 0) return __TVMBackendParallelLaunch(bad, 0, 5);
    return __TVMBackendParallelLaunch(outer, args[1].tensor->data, 100000);
}
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_launches_within_launches(tmp_path, threads):
    """More tasks than a ticket holds, and loops inside of tasks, run on the thread that meets them."""
    model = built(tmp_path, plan_of(), [compiled(tmp_path, NESTED)])
    context = model.context(threads)
    counts = context(np.zeros(64, "float32"))["y"].view("int32")
    assert counts[:3].tolist() == [100000] * 3 and not counts[3:].any()
    with pytest.raises(RunError, match="step 'Exp_0' failed: the kernel returned an error without a reason"):
        context(np.ones(64, "float32"))
    assert context(np.zeros(64, "float32"))["y"].view("int32")[0] == 100000


def test_missing_kernel(tmp_path, objects):
    with pytest.raises(CompileError, match="step 'Exp_0' needs the kernel 'grow', which no object defines"):
        link(plan_of(), objects[1:], 0, tmp_path / "a.so", "v3")


def test_damaged_object(tmp_path, objects):
    for content in (b"", b"hello", objects[0].read_bytes()[:200]):
        with pytest.raises(
            CompileError, match="kernel object 1 cannot be linked: (not a little-endian ELF|a damaged ELF)"
        ):
            link(plan_of(), [objects[0], content], 0, tmp_path / "a.so", "v3")


def test_place_that_cannot_be_written(tmp_path, objects):
    with pytest.raises(CompileError, match="cannot write the library .*nowhere.*: No such file or directory"):
        link(plan_of(), objects, 0, tmp_path / "nowhere" / "a.so", "v3")


PLANS = {
    "symbol": (Step("a-b", (), "n"), "step 'n': the kernel's name 'a-b' must be a C identifier"),
    "space": (Step("grow", (vector("disk"),), "n"), "the plan refers to disk 0, which it does not have"),
    "input": (Step("grow", (vector("input", 1),), "n"), "the plan refers to input 1, which it does not have"),
    "output": (Step("grow", (vector("output", -1),), "n"), "the plan refers to output -1"),
    "arena": (
        Step("grow", (vector("arena", 64),), "n"),
        r"a tensor at arena bytes 64\.\.320: outside or not",
    ),
    "weight": (Step("grow", (vector("weight"),), "n"), r"a tensor at weight bytes 0\.\.256: outside or not"),
    "align": (Step("grow", (vector("arena", 4, 1),), "n"), r"a tensor at arena bytes 4\.\.8: outside or not"),
    "dtype": (
        Step("grow", (vector("arena", dtype="fp4"),), "n"),
        "a kernel takes dtype 'fp4', which the runtime",
    ),
    "zero": (Step("grow", (), "n\0"), r"the name 'n\\x00' has a zero byte"),
}


@pytest.mark.parametrize("case", PLANS)
def test_impossible_plans(case):
    step, text = PLANS[case]
    with pytest.raises(CompileError, match=text):
        plan_source(plan_of(step), 0, "v3")


def test_border_dtypes():
    port = Port("x", "bfloat16", (4,), (4,))
    with pytest.raises(CompileError, match="'x' has dtype 'bfloat16'; a model's border takes bool, float16"):
        plan_source(plan_of(inputs=(port,)), 0, "v3")


def test_no_steps_at_all(tmp_path):
    """A model without nodes: nothing in, nothing out, nothing to do."""
    model = built(tmp_path, Plan((), (), (), 0, b""), [])
    assert model() == {} and model.profile() == []
    with pytest.raises(InputError, match=r"the model takes 0 inputs \(none\), found 1"):
        model(X)


def test_plan_is_readable():
    assert plan_source(plan_of(weights=bytes(64)), 128, "v3").splitlines()[5:] == [
        "// for each shape its extents, then its strides, in elements",
        "static const int64_t dims[] = {",
        "    64, 1,",
        "};",
        "",
        "static const sparsec_tensor inputs[] = {",
        '    {"x", "float32", 1, dims + 0, 256},',
        "};",
        "",
        "static const sparsec_tensor outputs[] = {",
        '    {"y", "float32", 1, dims + 0, 256},',
        "};",
        "",
        "static const sparsec_tensor states[1];",
        "",
        "// offset or index, first dim, axes, space, {DLPack type code, bits, lanes}",
        "static const sparsec_arg args[] = {",
        "    {0, 0, 1, SPARSEC_INPUT, {2, 32, 1}},",
        "    {0, 0, 1, SPARSEC_OUTPUT, {2, 32, 1}},",
        "};",
        "",
        "static const sparsec_step steps[] = {",
        '    {__tvm_ffi_grow, "Exp_0", 0, 2},',
        "};",
        "",
        "const sparsec_plan sparsec_the_plan = {",
        "    {SPARSEC_MODULE_ABI, 1, 1, 1, 256, 64, 128,",
        '     "v3", inputs, outputs, SPARSEC_CORE, 0, states},',
        "    dims, args, steps, 2,",
        "};",
    ]


@pytest.mark.parametrize(
    "text", ["", "plain", 'a"b\\c', "two\nlines\t", "??/ trigraph", "é 🐍", "\x7f\x01123"]
)
def test_c_strings(tmp_path, text):
    """A C compiler reads back what was meant."""
    (tmp_path / "a.c").write_text(
        f"#include <stdio.h>\nint main(void) {{ fputs({c_string(text)}, stdout); }}\n"
    )
    subprocess.run(["cc", "-std=c11", "-Werror", "a.c", "-o", "a"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "a"], capture_output=True, check=True).stdout.decode() == text


def test_elf_agrees_with_nm(objects):
    for path in objects:
        rows = subprocess.run(
            ["nm", "-g", path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        pairs = [row.split()[-2:] for row in rows]
        found = elf.symbols(path.read_bytes())
        assert found.defined == {name for kind, name in pairs if kind not in "Uw"}
        assert found.undefined == {name for kind, name in pairs if kind in "Uw"}


def test_elf_of_python_itself():
    found = elf.symbols(Path(sys.executable).resolve().read_bytes())
    assert "libc.so.6" in found.needed
