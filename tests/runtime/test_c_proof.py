"""The C core under sanitizers and Valgrind, its coverage, its size; it leaves nothing behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsec.runtime import build

sys.path.append(str(Path(__file__).resolve().parent / "c"))
import c_programs

VALGRIND = (
    "valgrind",
    "--quiet",
    "--error-exitcode=9",
    "--leak-check=full",
    "--errors-for-leak-kinds=definite",
)


def needs(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: apt-get install {tool})")


def needs_sanitizer(folder, flag):
    """Compilers know sanitizers whose libraries are not installed."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    try:
        c_programs.compiled(folder / "empty", [folder / "empty.c"], flag)
    except RuntimeError as e:
        pytest.skip(f"cc has no {flag}: {e}")


FLAGS = {
    "no threads": ["-O2", "-DSPARSEC_NO_THREADS"],
    "address and undefined": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_every_function(tmp_path, flags):
    """Every function of sparsec.h, right and wrong, then what fuzzing has found interesting.

    Sanitizers are in the core, the library and the program.  Without them test_coverage does the same.
    """
    for flag in flags:
        if flag.startswith("-fsanitize"):
            needs_sanitizer(tmp_path, flag)
    large = "-fsanitize=thread" not in flags
    assert c_programs.every(tmp_path, *flags, large=large) == "ok\n"
    assert c_programs.replayed(tmp_path, *flags).endswith(" inputs\n")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of the programs without sanitizers, and plan.c's model."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, c_programs.artifact(folder, "-O2")


@pytest.mark.slow
def test_under_valgrind(tmp_path):
    needs("valgrind")
    assert c_programs.every(tmp_path, "-O1", wrapper=VALGRIND, large=False, ROUNDS="20") == "ok\n"


def test_many_threads(tiny, plain, request):
    """Eight threads with a context each; every result is that of a run alone, bit by bit."""
    count = 10_000 if request.config.getoption("--run-slow") else 200
    assert c_programs.ran(c_programs.program(plain[0], "threads", "-O2"), tiny.path, count) == "ok\n"


def test_failing_allocations(plain):
    """Whichever allocation of the process fails, libc's own included: a message, and nothing worse."""
    if not build.tls_flags(("cc",)):
        pytest.skip(
            "cc has no -mtls-dialect=gnu2, and libc ends a process that has no memory for a thread's slot"
        )
    program = c_programs.program(plain[0], "failing", "-O2")
    for threads in (1, 2):
        assert int(c_programs.ran(program, plain[1], threads)) >= 5


def test_cycles(plain, request):
    """Loading, running and freeing leaves nothing behind."""
    count = 10_000 if request.config.getoption("--run-slow") else 200
    assert c_programs.ran(c_programs.program(plain[0], "cycles", "-O2"), plain[1], count) == "ok\n"


def test_coverage(tmp_path):
    needs("gcov")
    found = c_programs.coverage(tmp_path)
    assert {f"{source}" for source in (*build.CORE, *build.LIBRARY)} <= set(found)
    lines, hit = (sum(column) for column in zip(*found.values(), strict=True))
    assert hit >= 0.95 * lines, {source: counts for source, counts in found.items() if counts[0] > counts[1]}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_size(tmp_path, machine):
    """Core and library with zip, SHA-256, Ed25519 and threads, stripped, as one library."""
    cc = build.zig(f"{machine}-linux-musl")
    sources = sorted({build.SOURCES / source for source in (*build.CORE, *build.LIBRARY)})
    (tmp_path / "plan.c").write_text('#include "core/plan.h"\nconst sparsec_plan sparsec_the_plan;\n')
    command = [*cc, *build.FLAGS, f"-I{build.SOURCES}", "-shared", "-s", "-Wl,--gc-sections", "plan.c"]
    subprocess.run([*command, *sources, "-o", "all.so"], cwd=tmp_path, check=True)
    assert (tmp_path / "all.so").stat().st_size < 96_000


def test_memory(plain, tmp_path):
    """At its peak a process needs the weights, which are the file's pages, the arena, and 8 MiB at most."""
    model = c_programs.artifact(tmp_path, "-O2", **{"extra.bin": bytes(20 << 20)})
    found = json.loads(c_programs.ran(c_programs.program(plain[0], "start", "-O2"), model, 2))
    arena = 3 << 20
    assert model.stat().st_size < found["peak_bytes"] < model.stat().st_size + arena + (8 << 20)


def test_wrapper_for_cplusplus(plain, tmp_path):
    """sparsec.hpp without a warning, and what it does."""
    needs("c++")
    library = c_programs.library(plain[0], "-O2")
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Werror"]
    command = ["c++", *flags, f"-I{build.SOURCES}", Path(__file__).resolve().parent / "c/wrapper.cpp"]
    subprocess.run([*command, "-std=c++20", "-fsyntax-only"], check=True)
    linked = ["-std=c++11", library, "-ldl", "-lpthread", "-o", tmp_path / "wrapper"]
    subprocess.run([*command, *linked], check=True)
    assert c_programs.ran(tmp_path / "wrapper", plain[1]) == "ok\n"
