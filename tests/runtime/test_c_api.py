"""libsparsec: the example in C against Python, damaged artifacts, allocations, CPU features."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec.runtime import build, cpu

ROOT = Path(__file__).resolve().parents[2]


def compiled(source, library, out):
    """An executable with libsparsec.a inside, built with every warning on."""
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{build.SOURCES}"]
    libraries = [library / "libsparsec.a", "-lpthread", "-ldl"]
    subprocess.run(["cc", *flags, source, "-o", out, *libraries], check=True)
    return out


@pytest.fixture(scope="module")
def classify(library, tmp_path_factory):
    return compiled(ROOT / "examples/c/classify.c", library, tmp_path_factory.mktemp("classify") / "classify")


def numbers(line):
    return np.array(line.split("] ", 1)[1].split(), "float64")


def test_example_agrees_with_python(tiny, classify, tmp_path):
    inputs = tiny.inputs(3)
    for name, array in inputs.items():
        array.tofile(tmp_path / f"{name} file")
    files = [tmp_path / f"{name} file" for name in inputs]
    out = subprocess.run([classify, tiny.path, *files], capture_output=True, text=True, check=True).stdout
    y, kept = out.splitlines()
    assert y.startswith("y: float32[16, 8] ") and kept.startswith("kept: int64[] ")
    wanted = sparsec.load(tiny.path)(inputs)
    assert (numbers(y).astype("float32") == wanted["y"].ravel()).all()
    assert numbers(kept) == [wanted["kept"]]


def test_example_on_zeros(tiny, classify):
    out = subprocess.run([classify, tiny.path], capture_output=True, text=True, check=True).stdout
    assert np.abs(numbers(out.splitlines()[0]).reshape(16, 8) - (1 + tiny.b)).max() < 1e-6
    assert numbers(out.splitlines()[1]) == [0]


def test_example_failures(tiny, classify, tmp_path):
    def said(*args):
        run = subprocess.run([classify, *args], capture_output=True, text=True)
        assert run.stderr.count("\n") == 1
        return run.returncode, run.stderr

    assert said() == (2, "usage: classify MODEL.sparsec [INPUT.raw ...]\n")
    assert said("/nowhere")[1] == "classify: /nowhere: cannot open '/nowhere': No such file or directory\n"
    (tmp_path / "short").write_bytes(b"123")
    assert said(tiny.path, tmp_path / "short")[1].endswith("does not hold the bytes of this input\n")
    (tmp_path / "bad").write_bytes(tiny.path.read_bytes()[:-1])
    assert "no zip end record in the last 22 bytes; the file is cut off" in said(tmp_path / "bad")[1]


def test_header_is_c_and_cplusplus(tmp_path):
    (tmp_path / "a.c").write_text('#include "sparsec.h"\nint main(void) { return SPARSEC_FORMAT - 1; }\n')
    for compiler in (["cc", "-std=c11"], ["c++", "-x", "c++"]):
        if shutil.which(compiler[0]) is None:
            pytest.skip(f"no compiler called {compiler[0]}")
        command = [
            *compiler,
            "-Wall",
            "-Werror",
            f"-I{build.SOURCES}",
            "-c",
            tmp_path / "a.c",
            "-o",
            os.devnull,
        ]
        subprocess.run(command, check=True)


def test_exports(library):
    """Every function of the header but that of linked models, and nothing else."""
    rows = subprocess.run(
        ["nm", "-D", "--defined-only", library / "libsparsec.so"], capture_output=True, text=True, check=True
    )
    header = (build.SOURCES / "sparsec.h").read_text()
    declared = {
        line.split("(")[0].split()[-1].lstrip("*")
        for line in header.splitlines()
        if line.startswith("SPARSEC_API ")
    }
    exported = {row.split()[-1] for row in rows.stdout.splitlines()}
    assert exported == declared - {"sparsec_linked_model"}


def test_version_is_the_package_s(library):
    lib = ctypes.CDLL(str(library / "libsparsec.so"))
    lib.sparsec_version.restype = ctypes.c_char_p
    assert lib.sparsec_version().decode() == sparsec.__version__


# The same thousand mutants as in test_damage.py, in one process that a signal would end.
ATTACK = """
import ctypes, random, sys
from pathlib import Path

lib = ctypes.CDLL(sys.argv[2])
good = Path(sys.argv[1]).read_bytes()
random.seed(2)

class Error(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("message", ctypes.c_char * 1020)]

def attempt(data):
    room = ctypes.create_string_buffer(len(data) + 64)
    at = -ctypes.addressof(room) % 64
    ctypes.memmove(ctypes.addressof(room) + at, bytes(data), len(data))
    model, error = ctypes.c_void_p(), Error()
    where = ctypes.c_void_p(ctypes.addressof(room) + at)
    size, out = ctypes.c_size_t(len(data)), ctypes.byref(model)
    rc = lib.sparsec_open_memory(where, size, None, out, ctypes.byref(error))
    assert rc == error.kind and (rc == 0 or (error.message and model.value is None)), (rc, error.message)
    return rc, error.message

assert attempt(good)[0] == 0
starts = [int(n) for n in sys.argv[3].split(",")]
kinds = {}
for i in range(1000):
    data = bytearray(good)
    a, b = list(zip(starts, starts[1:]))[i % (len(starts) - 1)]
    if i < 700:
        for _ in range(random.choice([1, 1, 1, 2, 8])):
            data[random.randrange(a, b)] ^= 1 << random.randrange(8)
    elif i < 850:
        del data[random.choice([i - 700, random.randrange(len(good))]):]
    elif i < 925:
        at = random.randrange(len(good))
        del data[at:at + random.randrange(1, 5000)]
    else:
        data[random.randrange(len(good)):] = random.randbytes(random.randrange(3000))
    if data != good:
        rc, message = attempt(data)
        kinds[rc] = kinds.get(rc, 0) + 1
print(sorted(kinds.items()))
"""


def test_a_thousand_mutants(tiny, library):
    argument = ",".join(map(str, tiny.regions()))
    command = [sys.executable, "-c", ATTACK, tiny.path, library / "libsparsec.so", argument]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    kinds = dict(eval(run.stdout))
    assert set(kinds) == {1, 2} and sum(kinds.values()) > 980  # ARTIFACT and FORMAT; never 0, loaded


MANIFESTS = {
    "format": (
        '"format": 1',
        '"format": 2',
        2,
        "artifact format 2 is not format 1, the one that this sparsec reads",
    ),
    "feature": ('"cx16"', '"cx16", "avx1024", "amx"', 3, "this CPU lacks avx1024, amx, which level v2 needs"),
    "target": ('"x86_64"', '"riscv64"', 3, "the artifact is for riscv64 linux, this machine is x86_64 linux"),
    "system": ('"linux"', '"plan9"', 3, "the artifact is for x86_64 plan9, this machine is x86_64 linux"),
    "no target": ('"target"', '"targot"', 1, "manifest.json field 'target' is missing or wrong"),
    "no library": (
        '"member": "model.v2',
        '"member": "model.v3',
        1,
        "manifest.json field 'libraries' is missing or wrong",
    ),
    "size": ('"size": 1056', '"size": 1057', 1, "manifest.json field 'members' is missing or wrong"),
    "weights": (
        '"weights_size": 1056',
        '"weights_size": 1',
        1,
        "manifest.json field 'weights_size' is missing",
    ),
    "syntax": ('"passes": ""', '"passes": ', 1, "manifest.json is not JSON"),
    "depth": ('"passes": ""', '"passes": ' + "[" * 5000, 1, "manifest.json is not JSON"),
    "deep": ('"passes": ""', '"passes": ' + "[" * 40 + "]" * 40, 1, "manifest.json is not JSON"),
    "escape": ('"passes": ""', r'"passes": "\u12x4"', 1, "manifest.json is not JSON"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifest(tiny, tmp_path, attempt, case):
    old, new, status, text = MANIFESTS[case]
    path = tiny.rewritten(tmp_path / "a b\n.sparsec", lambda m: m.replace(old, new, 1))
    assert path.read_bytes() != tiny.path.read_bytes()
    found, message = attempt(path)
    assert (found, text in message) == (status, True), message


def test_manifest_may_hold_any_json(tiny, tmp_path, attempt):
    r"""Everything that JSON allows, in fields that a loader does not read."""
    value = r'{"\u00e9\\\"\/": [1, -0.5e+10, true, false, null, "", [], {}, [[{"x": "}]"}]]], "é": "\n"}'
    path = tiny.rewritten(tmp_path / "a", lambda m: m.replace('"choices": {}', f'"choices": {value}'))
    assert attempt(path) == (0, "")
    assert sparsec.load(path).manifest["choices"]["é"] == "\n"


def test_no_such_file(attempt, tmp_path):
    assert attempt(tmp_path / "no")[1].endswith("no': No such file or directory")
    assert attempt(tmp_path) == (1, "the artifact is not a regular file")
    (tmp_path / "empty").touch()
    assert attempt(tmp_path / "empty") == (2, "not a sparsec artifact: the file is empty")


def test_every_call(tiny, library, tmp_path):
    """Memory in place and copied, what is refused, and no allocation in ten thousand runs."""
    program = compiled(Path(__file__).parent / "c/calls.c", library, tmp_path / "calls")
    run = subprocess.run([program, tiny.path], capture_output=True, text=True)
    assert run.returncode == 0
    assert [line.strip() for line in run.stdout.splitlines()] == [
        "open: 0",
        "fd: 0",
        "memory: 4 an artifact in memory must be aligned to 64 bytes",
        "threads: 4 threads must be from 1 to 1024, or 0 for the default, found -1",
        "create: 0",
        "2 v2 2 2 3",
        "mask 1",
        "ReduceSum_2 1",
        "nothing given: 4 input 'x' was never given",
        "size: 4 input 'x' takes 2048 bytes, found 3",
        "index: 4 output 7: the model has 2",
        "null: 4 input 'x' must not be NULL",
        "quiet: 0",
        "x: 0",
        "mask: 0",
        "run: 0",
        "kept 2",
        "y: 0",
        "run: 0",
        "in place 1",
        "odd: 0",
        "x: 0",
        "copied 1",
        "allocations 0, timed 1",
        "own: 0",
        "own again 1 1",
    ]


def test_cpu_features_agree(library, tmp_path):
    """CPUID and XGETBV say the same as Linux; an unknown name is a feature that is missing."""
    names = sorted(cpu.KNOWN_FEATURES) + ["avx1024", ""]
    checks = "".join(
        f'    printf("%d", cpu_has((span){{(const uint8_t *)"{n}", {len(n)}}}));\n' for n in names
    )
    (tmp_path / "a.c").write_text(f'#include "lib/lib.h"\nint main(void) {{\n{checks}    return 0;\n}}\n')
    sources = [tmp_path / "a.c", build.SOURCES / "lib/cpu.c"]
    subprocess.run(["cc", f"-I{build.SOURCES}", *sources, "-o", tmp_path / "a"], check=True)
    found = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    assert [c == "1" for c in found] == [n in cpu.features() for n in names]
