"""A GPU that is none: models compiled for CUDA run through the shipped loader, on a driver that emulates
kernels.
"""

import _ctypes
import ctypes
import hashlib
import platform
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
HOSTS = (f"cuda-{platform.machine()}",)  # that of the tests
FAT_BINARY = b"\x50\xed\x55\xba"  # what every fat binary begins with


class Control(ctypes.Structure):
    """What the driver is to be; mirrors fake_driver.cpp."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("devices", ctypes.c_int),
        ("capability", ctypes.c_int),
        ("memory", ctypes.c_uint64),
        ("init_result", ctypes.c_int),
        ("load_result", ctypes.c_int),
        ("order", ctypes.c_int),
        ("emulated", ctypes.c_char_p),
    ]


class Counters(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int) for n in ["allocations", "launches", "graph_launches", "captures", "contexts"]),
        *((n, ctypes.c_int) for n in ["modules", "copies_between"]),
        ("trouble", ctypes.c_char * 512),
    ]


class Driver:
    """The fake libcuda.so.1, loaded: every later look for that name finds it."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        self.library.fake_live.restype = ctypes.c_size_t
        self.path = path

    def be(self, emulated: Path | None = None, **wanted) -> None:
        """``version``, ``devices``, ``capability``, ... as in Control; ``emulated``: the kernels' library."""
        usual = {"version": 13000, "devices": 1, "capability": 80, "memory": 1 << 34, "order": 0}
        path = str(emulated).encode() if emulated else None
        self.library.fake_control(ctypes.byref(Control(**(usual | wanted), emulated=path)))

    @property
    def counters(self) -> Counters:
        found = Counters()
        self.library.fake_counters(ctypes.byref(found))
        return found

    def alloc(self, array: np.ndarray) -> int:
        """Device memory with the content of ``array``; to be freed with ``free``."""
        address = ctypes.c_uint64()
        self.library.cuCtxPushCurrent_v2(ctypes.c_void_p(self._context()))
        assert not self.library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(array.nbytes))
        self.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        ctypes.memmove(address.value, array.ctypes.data, array.nbytes)
        return address.value

    def free(self, address: int) -> None:
        self.library.cuCtxPushCurrent_v2(ctypes.c_void_p(self._context()))
        assert not self.library.cuMemFree_v2(ctypes.c_uint64(address))
        self.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _context(self) -> int:
        context = ctypes.c_void_p()
        self.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 100)
        self.library.cuDevicePrimaryCtxRelease_v2(100)
        return context.value


def build_driver(folder: Path, machine: str = "") -> Path:
    """The fake libcuda.so.1 for ``machine``, this one if empty; skips where it cannot be built."""
    from cuda_emulator.build import compiler

    if not (gcc := compiler(machine)):
        package = f"g++-{machine}-linux-gnu" if machine else "g++"
        pytest.skip(f"not installed: {package} (apt-get install {package})")
    path = folder / "libcuda.so.1"
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([gcc, *flags, str(HERE / "fake_driver.cpp"), "-o", str(path), "-ldl"], check=True)
    return path


@pytest.fixture(scope="session")
def loaded_driver(tmp_path_factory):
    driver = Driver(build_driver(tmp_path_factory.mktemp("driver")))
    yield driver
    _ctypes.dlclose(driver.library._handle)


@pytest.fixture
def driver(loaded_driver):
    """The driver, as new; afterwards it must not have seen a misuse, and everything must be given back."""
    loaded_driver.library.fake_reset()
    loaded_driver.be()
    yield loaded_driver
    found = loaded_driver.counters
    assert found.trouble.decode() == ""
    assert (loaded_driver.library.fake_live(), found.contexts, found.modules) == (0, 0, 0)


@dataclass(frozen=True)
class Compiled:
    """An artifact for GPUs, its CUDA C, and the library of its kernels that the emulator made."""

    path: Path
    report: dict
    source: str
    emulated: Path

    def watched(self) -> Path:
        """The kernels' library that watches every access, and is several times slower."""
        from cuda_emulator import library

        return library(self.source, checked=True)


class NoMachineCode:
    """A compiler whose fat binaries hold a hash of the source, from which the emulator has the kernels."""

    version = 13000

    def fat_binary(self, source: str, names, ptx) -> bytes:
        return FAT_BINARY + hashlib.sha256(source.encode()).digest()


@pytest.fixture(scope="session")
def compile_for_gpu(tmp_path_factory, loaded_driver):
    """``compile_for_gpu(model, hosts, **request) -> Compiled``; each model is compiled once, without nvcc.

    ``hosts``: the levels of the libraries, that of this machine by default.
    """
    from cuda_emulator import library
    from sparsec.compiler.cuda import road
    from sparsec.compiler.pipeline import compile_model
    from sparsec.compiler.request import CompileRequest

    made: dict = {}

    def compile_(model: Path | bytes, hosts=HOSTS, **request) -> Compiled:
        key = (model, repr((hosts, request)))
        if key not in made:
            folder = tmp_path_factory.mktemp("gpu")
            path = folder / "model.onnx" if isinstance(model, bytes) else Path(model)
            if isinstance(model, bytes):
                path.write_bytes(model)
            out = folder / "model.sparsec"
            asked = {"target": "cuda", "verify": False, "keep_source": True} | request
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(road, "toolchain", NoMachineCode)
                patch.setattr(road, "hosts", lambda: hosts)
                report = compile_model(CompileRequest(str(path), str(out), **asked))
            source = zipfile.ZipFile(out).read(road.SOURCE).decode()
            made[key] = Compiled(out, report, source, library(source))
        return made[key]

    return compile_


@pytest.fixture(scope="session")
def text_model():
    """``text_model("(float[2] x) => (y) { y = Relu(x) }")``: a serialised model, from ONNX's text form."""
    import onnx

    def build(body: str) -> bytes:
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {body}')
        return onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString()

    return build
