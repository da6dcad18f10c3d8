"""Compile commands for the C sources of ``runtime/c``: the core of every library, and libsparsec.

No build system: each source is one command, and callers run them where they like.  Nothing here
depends on time, user or folder, so the same compiler gives the same objects.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .cpu import architecture
from .errors import SparsecError

SOURCES = Path(__file__).resolve().parent / "c"
CORE = (
    "core/backend.c",
    "core/context.c",
    "core/pool.c",
    "core/run.c",
    "core/state.c",
    "core/system.c",
    "cpus.c",
)
#: Of libraries for GPUs, instead of CORE.
CUDA = ("cuda/context.c", "cuda/driver.c", "cuda/resident.c", "cuda/run.c", "cuda/state.c")
# The core and the calls of sparsec.h for a model that is linked with its program: no threads, no system.
BARE = (
    "core/backend.c",
    "core/bare.c",
    "core/context.c",
    "core/pool.c",
    "core/run.c",
    "core/state.c",
    "lib/calls.c",
    "lib/linked.c",
)
# Programs for devices: one that reads artifacts, one of a model that is linked with it, one for signatures.
ARTIFACT_PROGRAM = ("tools/artifact.c", "tools/device.c", "tools/files.c", "tools/key.c", "tools/selftest.c")
LINKED_PROGRAM = (
    "tools/linked.c",
    "tools/device.c",
    "tools/files.c",
    "tools/libc.c",
    "tools/selftest.c",
    "lib/cpu.c",
)
VERIFY_PROGRAM = (
    "tools/verify.c",
    "tools/files.c",
    "tools/key.c",
    "tools/libc.c",
    "lib/ed25519.c",
    "lib/sha512.c",
)
# Small rather than fast; no tables for unwinding and no frame pointers, which nobody there follows.
SMALL = (
    "-Os",
    "-fomit-frame-pointer",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
)
BARE_FLAGS = (*SMALL, "-DSPARSEC_BARE", "-DSPARSEC_NO_THREADS")
RUNNER = "runner.c"
LIBRARY = (
    "cpus.c",
    "lib/calls.c",
    "lib/cpu.c",
    "lib/ed25519.c",
    "lib/hash.c",
    "lib/json.c",
    "lib/manifest.c",
    "lib/open.c",
    "lib/sha256.c",
    "lib/sha256_cpu.c",
    "lib/sha512.c",
    "lib/signature.c",
    "lib/zip.c",
)

# No fast-math in any form: it would flush denormals for the whole process as soon as it is loaded.
FLAGS = (
    "-std=c11",
    "-O2",
    "-g0",  # zig's default is to describe everything
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-ident",
    "-D_GNU_SOURCE",
    "-DSPARSEC_BUILD",
    "-Wall",
    "-Wextra",
)


# Any glibc from these versions on loads what zig links for them, and musl does for x86-64 and aarch64, too:
# it takes glibc's names for its own and ignores versions.  The loader's memfd_create came with 2.27.
ZIG_TARGETS = {
    "x86_64": "x86_64-linux-gnu.2.28",
    "aarch64": "aarch64-linux-gnu.2.27",
    "armv7": "arm-linux-gnueabihf.2.27",
    "riscv64": "riscv64-linux-gnu.2.27",
}
# The same for an executable that holds its libc, which is musl's.
ZIG_STATIC = {
    "x86_64": "x86_64-linux-musl",
    "aarch64": "aarch64-linux-musl",
    "armv7": "arm-linux-musleabihf",
    "riscv64": "riscv64-linux-musl",
}


class BuildError(SparsecError):
    """No C compiler, or one that failed; the text is one line."""


def compiler(target: str = "") -> list[str]:
    """The command of the C compiler for the architecture ``target``, this machine's if empty.

    For this machine $CC, else the host's ``cc``, else the one in ``ziglang``; for others that one alone.
    Raises BuildError if there is none.
    """
    if target and target != architecture():
        return zig(ZIG_TARGETS[target])
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise BuildError(
                f"the C compiler {named[0]!r}, named by $CC, is not installed; unset CC or install it"
            )
        return named
    if shutil.which("cc"):
        return ["cc"]
    if find_spec("ziglang"):
        # zig links against any glibc; the host's own cc only against the host's and newer ones
        return zig(ZIG_TARGETS[architecture()])
    raise BuildError("no C compiler found: install one as 'cc', or run: python -m pip install ziglang")


def zig(target: str) -> list[str]:
    """The command of ziglang's C compiler for a target as zig spells it; BuildError where it is missing."""
    if find_spec("ziglang") is None:
        raise BuildError(f"no C compiler for {target} found; zig has one: python -m pip install ziglang")
    return [sys.executable, "-m", "ziglang", "cc", "-target", target]


@cache
def tls_flags(cc: tuple[str, ...]) -> tuple[str, ...]:
    """What makes ``cc`` reach thread-local variables by descriptors, where that is a choice (x86-64).

    They are then in memory that a thread has from its start.  The older way calls malloc in a thread's first
    run, and ends the process when there is no memory.
    """
    flags = ("-mtls-dialect=gnu2",)
    command = [*cc, *flags, "-Werror", "-fsyntax-only", "-x", "c", os.devnull]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    return () if done.returncode else flags


def compile_command(cc: Sequence[str], source: str, output: str) -> list[str]:
    """The command that compiles ``source``, a file relative to the folder it runs in."""
    here = f"-ffile-prefix-map={SOURCES}=sparsec"
    return [*cc, *FLAGS, here, f"-I{SOURCES}", "-c", source, "-o", output]


def run(command: Sequence[str], folder: Path) -> str:
    """Runs ``command`` in ``folder`` and returns what it said; raises BuildError with its words."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
    )
    if done.returncode:
        words = " | ".join(
            line.strip() for line in done.stderr.splitlines() if "error" in line or "undefined" in line
        )
        raise BuildError(
            f"{command[0]} failed with exit code {done.returncode}: {words or done.stderr.strip()}"[:2000]
        )
    return done.stderr


def compile_sources(
    cc: Sequence[str], sources: Sequence[str], folder: Path, flags: Sequence[str] = ()
) -> list[str]:
    """Compiles ``sources`` of SOURCES into ``folder``; returns the objects' names, in link order."""
    objects = []
    for source in sources:
        name = source.removesuffix(".c").replace("/", "_") + ".o"
        run([*compile_command(cc, str(SOURCES / source), name), *flags], folder)
        objects.append(name)
    return objects


def archive(name: str, objects: Sequence[str], folder: Path) -> Path:
    """Makes the static library ``name`` of object files in ``folder``; same objects, same bytes."""
    (folder / name).unlink(missing_ok=True)
    run([*archiver(), "rcsD", name, *objects], folder)
    return folder / name


def archiver() -> list[str]:
    """The command that makes static libraries, of objects of any architecture."""
    return [sys.executable, "-m", "ziglang", "ar"] if find_spec("ziglang") else ["ar"]


def build_library(folder: Path, target: str = "") -> tuple[Path, Path]:
    """Builds ``libsparsec.a`` and ``libsparsec.so`` for C users into ``folder``, and returns them.

    ``target``: an architecture, this machine's if empty.
    """
    return make_library(compiler(target), folder)


def make_library(cc: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """What ``build_library`` does, by the C compiler ``cc``."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = compile_sources(cc, LIBRARY, folder)
    shared = ["-shared", "-Wl,-soname,libsparsec.so.0", "-Wl,-z,defs", "-Wl,--build-id=none", "-s"]
    run([*cc, *shared, "-o", "libsparsec.so", *objects, "-ldl", "-lpthread"], folder)
    made = archive("libsparsec.a", objects, folder), folder / "libsparsec.so"
    for name in objects:
        (folder / name).unlink()
    return made
