"""A compiled library in this process: loaded from sealed memory, called through its function table.

The structs mirror runtime/c/module.h and runtime/c/sparsec.h.
"""

import _ctypes
import ctypes
import fcntl
import os
from collections.abc import Sequence

from .errors import ArtifactError, InputError, RunError, TargetError
from .manifest import Manifest, TensorInfo

ABI = 2  # the newest; a library of ABI 1 lacks the fields from ``context_size`` on
GPU_ABI = 1
_KINDS = {1: ArtifactError, 3: TargetError, 4: InputError}  # of enum sparsec_status

_Pointer = ctypes.c_void_p
_Status = ctypes.c_int


class Error(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("message", ctypes.c_char * 1020)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_uint64),
    ]


_ErrorPointer = ctypes.POINTER(Error)
_Create = ctypes.CFUNCTYPE(_Status, _Pointer, ctypes.c_int, ctypes.POINTER(_Pointer), _ErrorPointer)
_Bind = ctypes.CFUNCTYPE(_Status, _Pointer, ctypes.c_uint32, _Pointer, ctypes.c_size_t, _ErrorPointer)
_Copy = ctypes.CFUNCTYPE(_Status, _Pointer, _Pointer, ctypes.c_size_t, _ErrorPointer)
# The arrays of pointers go as plain addresses: this is the call that is made for every inference.
_Run = ctypes.CFUNCTYPE(_Status, _Pointer, _Pointer, _Pointer, _Pointer, _Pointer)


class Module(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("input_count", ctypes.c_uint32),
        ("output_count", ctypes.c_uint32),
        ("step_count", ctypes.c_uint32),
        ("arena_size", ctypes.c_uint64),
        ("weights_size", ctypes.c_uint64),
        ("workspace_size", ctypes.c_uint64),
        ("level", ctypes.c_char_p),
        ("inputs", ctypes.POINTER(Tensor)),
        ("outputs", ctypes.POINTER(Tensor)),
        ("create", _Create),
        ("destroy", ctypes.CFUNCTYPE(None, _Pointer)),
        ("threads", ctypes.CFUNCTYPE(ctypes.c_int, _Pointer)),
        ("set_input", _Bind),
        ("bind_input", _Bind),
        ("bind_output", _Bind),
        ("output_data", ctypes.CFUNCTYPE(_Pointer, _Pointer, ctypes.c_uint32)),
        ("run", _Run),
        ("label", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint32)),
        ("context_size", ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_int)),
        ("create_in", _Pointer),
        ("snapshot", _Copy),
        ("restore", _Copy),
        ("state_data", ctypes.CFUNCTYPE(_Pointer, _Pointer, ctypes.c_uint32)),
        ("state_count", ctypes.c_uint32),
        ("states", ctypes.POINTER(Tensor)),
    ]


class Gpu(ctypes.Structure):
    """What a library for GPUs exports beside its module (runtime/c/gpu.h)."""

    _fields_ = [
        ("abi", ctypes.c_uint32),
        (
            "create",
            ctypes.CFUNCTYPE(
                _Status, _Pointer, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(_Pointer), _ErrorPointer
            ),
        ),
        ("stream", ctypes.CFUNCTYPE(_Pointer, _Pointer)),
    ]


def load_code(code: bytes) -> tuple[ctypes.CDLL, int]:
    """Load a library from memory that nobody can change any more: (library, descriptor).

    The descriptor must stay open as long as the library is loaded.  The dynamic linker knows a
    library by its path, and /proc/self/fd/N would otherwise soon be the path of another one.
    """
    try:
        fd = os.memfd_create("sparsec-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as e:
        raise RunError(f"cannot make memory for the model's code: memfd_create: {e.strerror}") from e
    try:
        view = memoryview(code)
        while view:
            view = view[os.write(fd, view) :]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return ctypes.CDLL(f"/proc/self/fd/{fd}"), fd
    except OSError as e:
        os.close(fd)
        raise RunError(f"the system cannot load the model's code: {e}") from e


class Code:
    """A loaded library.  It is unloaded after ``close`` when its last context has been destroyed.

    The garbage collector may finalise a library before its contexts, so neither side trusts the
    order: whoever comes last unloads.

    ``weights`` is the address of the weights (0 if there are none), which ``keep`` keeps mapped, and ``size``
    how many bytes of them the library knows of; ``kernels`` is the code for GPUs, empty for a model that runs
    on CPUs.  The library must describe the very model that ``manifest`` does.
    """

    def __init__(
        self,
        code: bytes,
        weights: int,
        size: int,
        keep: object,
        manifest: Manifest,
        kernels: bytes = b"",
    ):
        self.module = self.gpu = None
        self._library, self._fd = load_code(code)
        self._weights, self._kernels, self._keep = weights, kernels, keep
        self._live: set[int] = set()
        self._doomed = False
        try:
            self.module = self._entry()
            self.gpu = self._gpu_entry() if kernels else None
            sides = (manifest.inputs, manifest.outputs, manifest.states)
            wanted = (size, *map(_described, sides))
            if _tables(self.module) != wanted:
                raise ArtifactError("the artifact's library and its manifest describe different models")
        except ArtifactError:
            self.close()
            raise

    def _entry(self) -> Module:
        module = self._exported("sparsec_module_v1", Module)
        if not 1 <= module.abi <= ABI:
            raise ArtifactError(
                f"the artifact's library has ABI {module.abi}, this runtime speaks ABI 1 to {ABI}"
            )
        return module

    def _gpu_entry(self) -> Gpu:
        gpu = self._exported("sparsec_gpu_v1", Gpu)
        if gpu.abi != GPU_ABI:
            raise ArtifactError(
                f"the artifact's library has GPU ABI {gpu.abi}, this runtime speaks ABI {GPU_ABI}"
            )
        return gpu

    def _exported(self, name: str, table: type[ctypes.Structure]):
        """The ``table`` that the library's function ``name`` gives."""
        entry = getattr(self._library, name, None)
        if entry is None:
            raise ArtifactError(f"the artifact's library does not export {name}")
        entry.restype = ctypes.POINTER(table)
        return entry().contents

    def create(self, threads: int, device: int = 0) -> int:
        """A new context's address; ``threads`` as in sparsec.h, 0 for the default; on GPU ``device``."""
        context, error = _Pointer(), Error()
        made = ctypes.byref(context), ctypes.byref(error)
        if self.gpu:
            failed = self.gpu.create(self._weights or None, self._kernels, device, *made)
        else:
            failed = self.module.create(self._weights or None, threads, *made)
        if failed:
            raise to_exception(error)
        self._live.add(context.value)
        return context.value

    def destroy(self, context: int) -> None:
        """Free a context that ``create`` made."""
        self.module.destroy(context)
        self._live.remove(context)
        if self._doomed:
            self.close()

    def labels(self) -> list[str]:
        """The label of each step, in the order of execution."""
        return [self.module.label(i).decode() for i in range(self.module.step_count)]

    def close(self) -> None:
        """Make no more contexts; unload now, or with the last of those that there are."""
        self._doomed = True
        if self._fd >= 0 and not self._live:
            self.module = self.gpu = self._keep = None
            _ctypes.dlclose(self._library._handle)
            os.close(self._fd)
            self._fd = -1

    @property
    def closed(self) -> bool:
        return self._doomed

    def __del__(self):
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def _described(infos: Sequence[TensorInfo]) -> list[tuple]:
    return [(info.name, info.dtype, info.shape) for info in infos]


def _tables(module: Module) -> tuple:
    """The size of the weights, the ports and the states, as the library says."""

    def ports(table, count: int) -> list[tuple]:
        rows = [table[i] for i in range(count)]
        return [(t.name.decode(), t.dtype.decode(), tuple(t.shape[: t.ndim])) for t in rows]

    inputs, outputs = ports(module.inputs, module.input_count), ports(module.outputs, module.output_count)
    states = ports(module.states, module.state_count) if module.abi > 1 else []
    return module.weights_size, inputs, outputs, states


def to_exception(error: Error) -> Exception:
    """The exception that says what the core said."""
    kind = _KINDS.get(error.kind, RunError)
    return kind(error.message.decode(errors="replace"))


def pointers(addresses: Sequence[int]) -> ctypes.Array:
    """A C array of pointers."""
    return (_Pointer * len(addresses))(*addresses)
