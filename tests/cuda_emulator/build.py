"""CUDA C text to a shared library with the C interface of `emulator.h`."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from cuda_emulator.translate import translate

_HERE = Path(__file__).resolve().parent
_CACHE = _HERE.parent.parent / ".pytest_cache" / "cuda_emulator"
_RUNTIME = ("scheduler.cpp", "memory.cpp", "ptx.cpp")
# As nvcc does, a * b + c may become a fused multiply-add.
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-ffp-contract=fast",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-w",
)
_CHECKED = ("-fsanitize=thread", "-fsanitize=bounds")
_MACHINES = {"x86_64": ("-march=x86-64-v3",), "aarch64": ()}


def compiler(machine: str = "") -> str | None:
    """The C++ compiler for ``machine``, this one if empty; None where it is not installed."""
    own = machine in ("", platform.machine())
    return shutil.which("g++" if own else f"{machine}-linux-gnu-g++")


def library(source: str, checked: bool = False, machine: str = "") -> Path:
    """The library of ``source`` for ``machine``, this one if empty, from the cache or made now.

    Raises ValueError with the compiler's first complaint, as for an instruction that `ptx.h` does not know.
    """
    text = translate(source)
    gcc = (compiler(machine), *_FLAGS, *_MACHINES[machine or platform.machine()])
    flags = _CHECKED if checked else ()
    made = _CACHE / f"{_digest(text, *gcc, *flags, *_sources())}.so"
    if not made.exists():
        objects = [_runtime(gcc, name, checked) for name in _RUNTIME]
        with tempfile.TemporaryDirectory() as folder:
            generated = Path(folder) / "generated.cpp"
            generated.write_text(text)
            _run(*gcc, *flags, "-c", str(generated), "-o", f"{folder}/generated.o")
            _publish(made, *gcc, "-shared", f"{folder}/generated.o", *map(str, objects))
    return made


def _runtime(gcc: tuple[str, ...], name: str, checked: bool) -> Path:
    """An object of the emulator itself, which is never instrumented."""
    flags = ("-O2", *(("-DEMU_CHECKED",) if checked else ()))
    made = _CACHE / f"{_digest(name, *gcc, *flags, *_sources())}.o"
    if not made.exists():
        _publish(made, *gcc, *flags, "-c", str(_HERE / name))
    return made


def _sources() -> list[str]:
    return [path.read_text() for path in sorted(_HERE.glob("*.h")) + sorted(_HERE.glob("*.cpp"))]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


def _publish(made: Path, *command: str) -> None:
    """Runs ``command`` with its result at ``made``, whole or not at all."""
    made.parent.mkdir(parents=True, exist_ok=True)
    temporary = made.with_suffix(f".{os.getpid()}{made.suffix}")
    _run(*command, "-o", str(temporary))
    temporary.rename(made)


def _run(*command: str) -> None:
    # The library's own symbols first: several emulations live in one process.
    result = subprocess.run([*command, "-I", str(_HERE), "-Wl,-Bsymbolic"], capture_output=True, text=True)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line] or [result.stderr[-500:]]
        raise ValueError(f"the emulator cannot compile this source: {errors[0]}")
