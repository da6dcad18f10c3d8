"""CUDA C to a fat binary: by ``nvcc`` where it is installed, else by NVRTC from pip packages.

Neither needs a GPU, or a driver.  No fast-math; multiplications and additions may be fused, as everywhere.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sparsec.compiler.errors import CompileError

_MEND = "python -m pip install 'sparsec[cuda]'"
_STANDARD = "c++17"
_REMEDIES = {
    "host compiler": f"nvcc needs g++: install it, or take nvcc off the PATH and run: {_MEND}",
    "Unsupported gpu architecture": "the toolkit does not know that GPU: take another version of it, "
    "or name one that it knows, as in --target cuda:sm_80",
}
"""What nvcc complains of -> what to do."""


@dataclass(frozen=True)
class Nvcc:
    """NVIDIA's compiler, ``command``; ``version`` as CUDA counts it: 13000 for 13.0."""

    command: str
    version: int

    def __str__(self) -> str:
        return f"nvcc {self.version // 1000}.{self.version % 1000 // 10}"

    def fat_binary(self, source: str, names: Sequence[str], ptx: str | None) -> bytes:
        """Machine code for the architectures ``names`` (``sm_80``), and PTX for later ones than ``ptx``."""
        codes = [f"arch={compute(name)},code={name}" for name in names]
        codes += [f"arch={compute(ptx)},code={compute(ptx)}"] if ptx else []
        with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
            (Path(folder) / "kernels.cu").write_text(source)
            flags = ["-fatbin", "-O3", f"-std={_STANDARD}", "--threads=0"]
            flags += [part for code in codes for part in ("-gencode", code)]
            done = subprocess.run(
                [self.command, *flags, "kernels.cu", "-o", "kernels.fatbin"],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
            )
            if done.returncode:
                words = _first_error(done.stderr)
                remedies = [remedy for complaint, remedy in _REMEDIES.items() if complaint in words]
                raise CompileError("; ".join([f"{self.command} failed: {words.rstrip('.')}", *remedies]))
            return (Path(folder) / "kernels.fatbin").read_bytes()


@dataclass(frozen=True)
class Nvrtc:
    """NVIDIA's compiler as a library, and the one that joins what it makes to a fat binary."""

    nvrtc: Path
    nvfatbin: Path
    version: int

    def __str__(self) -> str:
        return f"NVRTC {self.version // 1000}.{self.version % 1000 // 10}"

    def fat_binary(self, source: str, names: Sequence[str], ptx: str | None) -> bytes:
        """As ``Nvcc.fat_binary``."""
        parts = [(name, self._compile(source, name, "CUBIN")) for name in names]
        joined = _Library(self.nvfatbin, "nvFatbin")
        handle = ctypes.c_void_p()
        options = (ctypes.c_char_p * 1)(b"-64")
        joined.call("Create", ctypes.byref(handle), options, ctypes.c_size_t(1))
        for name, code in parts:
            joined.call("AddCubin", handle, code, ctypes.c_size_t(len(code)), name[3:].encode(), b"kernels")
        if ptx:
            text = self._compile(source, compute(ptx), "PTX")
            joined.call(
                "AddPTX", handle, text, ctypes.c_size_t(len(text)), ptx[3:].encode(), b"kernels", None
            )
        size = ctypes.c_size_t()
        joined.call("Size", handle, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        joined.call("Get", handle, binary)
        joined.call("Destroy", ctypes.byref(handle))
        return binary.raw

    def _compile(self, source: str, name: str, form: str) -> bytes:
        """The source as "CUBIN" for ``sm_80``, or as "PTX" for ``compute_80``."""
        library = _Library(self.nvrtc, "nvrtc")
        program = ctypes.c_void_p()
        library.call("CreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        options = [f"--gpu-architecture={name}", f"--std={_STANDARD}"]
        array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        try:
            try:
                library.call("CompileProgram", program, len(options), array)
            except CompileError as error:
                words = _first_error(library.text("ProgramLog", program).decode(errors="replace"))
                raise CompileError(f"{self} failed: {words}") from error
            return library.text(form, program)
        finally:
            library.call("DestroyProgram", ctypes.byref(program))


class _Library:
    """A library whose functions begin with ``prefix`` and return 0 where they went well."""

    def __init__(self, path: Path, prefix: str):
        self.library, self.prefix = ctypes.CDLL(str(path)), prefix

    def call(self, name: str, *args) -> None:
        status = getattr(self.library, self.prefix + name)(*args)
        if status:
            raise CompileError(f"{self.prefix}{name} failed with status {status}")

    def text(self, what: str, program) -> bytes:
        size = ctypes.c_size_t()
        self.call(f"Get{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self.call(f"Get{what}", program, data)
        return data.raw


def toolchain() -> Nvcc | Nvrtc:
    """The CUDA compiler of this machine; CompileError, with what to do, where there is none."""
    command = shutil.which("nvcc")
    if command:
        return Nvcc(command, _nvcc_version(command))
    libraries = [_packaged(name) for name in ("nvrtc", "nvfatbin")]
    if None not in libraries:
        return Nvrtc(*libraries, _nvrtc_version(libraries[0]))
    raise CompileError(f"no CUDA compiler found: put nvcc on the PATH, or run: {_MEND}")


def compute(name: str) -> str:
    """``sm_80`` -> ``compute_80``."""
    return name.replace("sm_", "compute_")


def _packaged(name: str) -> Path | None:
    """``lib<name>.so`` of NVIDIA's pip packages."""
    spec = find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob(f"*/lib/lib{name}.so.*"))]
    return found[-1] if found else None


def _nvcc_version(command: str) -> int:
    done = subprocess.run([command, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if done.returncode or not found:
        raise CompileError(f"{command} does not say its version; repair it, or take it off the PATH")
    return 1000 * int(found[1]) + 10 * int(found[2])


def _nvrtc_version(path: Path) -> int:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _Library(path, "nvrtc").call("Version", ctypes.byref(major), ctypes.byref(minor))
    return 1000 * major.value + 10 * minor.value


def _first_error(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return next(
        (line for line in lines if "error" in line.lower()), lines[-1] if lines else "no reason given"
    )
