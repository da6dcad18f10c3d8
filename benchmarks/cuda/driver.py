"""A GPU through its driver alone: memory, a module, launches, times.  Needs nothing of sparsec."""

import ctypes
import statistics
from collections.abc import Sequence

import numpy as np

_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class DriverError(Exception):
    """A call of the driver that failed, with the driver's word for why."""


def _host(array: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    return ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)


class Device:
    """GPU 0 with a module of kernels; `close` gives everything back."""

    def __init__(self, module: bytes, library: str = "libcuda.so.1"):
        self._cuda = ctypes.CDLL(library)
        self._memory: list[ctypes.c_uint64] = []
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxPushCurrent_v2", context)
        self._module = ctypes.c_void_p()
        try:
            self._call("cuModuleLoadData", ctypes.byref(self._module), module)
        except DriverError:
            self._leave()
            raise
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)

    def _call(self, name: str, *args) -> None:
        status = getattr(self._cuda, name)(*args)
        if status:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorName(status, ctypes.byref(text))
            raise DriverError(f"{name}: {(text.value or b'unknown error').decode()} ({status})")

    def upload(self, array: np.ndarray) -> ctypes.c_uint64:
        """Memory with the content of ``array``."""
        array = np.ascontiguousarray(array)
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(array.nbytes))
        self._memory.append(address)
        self._call("cuMemcpyHtoDAsync_v2", address, *_host(array), self._stream)
        self.synchronize()
        return address

    def behind(self, address: ctypes.c_uint64, offset: int) -> ctypes.c_uint64:
        """The place ``offset`` bytes behind the beginning of some memory."""
        return ctypes.c_uint64(address.value + offset)

    def download(self, address: ctypes.c_uint64, array: np.ndarray) -> np.ndarray:
        """``array`` with the content of the memory."""
        data, size = _host(array)
        self._call("cuMemcpyDtoHAsync_v2", data, address, size, self._stream)
        self.synchronize()
        return array

    def free(self) -> None:
        """All memory that was uploaded."""
        while self._memory:
            self._call("cuMemFree_v2", self._memory.pop())

    def kernel(self, name: str, shared: int) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        if shared > 48 * 1024:
            self._call("cuFuncSetAttribute", function, _DYNAMIC_SHARED, shared)
        return function

    def launch(
        self, kernel, grid: Sequence[int], block: Sequence[int], shared: int, args: Sequence[ctypes.c_uint64]
    ) -> None:
        pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(a) for a in args))
        self._call("cuLaunchKernel", kernel, *grid, *block, shared, self._stream, pointers, None)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def seconds(self, run, repeats: int, rounds: int = 5) -> float:
        """The median of ``rounds`` times of one ``run()``, each taken over ``repeats`` of them.

        They are replayed as a graph, as those of torch are: Python launches slower than small kernels run.
        """
        graph = self._captured(run, repeats)
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        times = []
        for _ in range(1 + rounds):  # the first brings the graph to the GPU
            self._call("cuEventRecord", events[0], self._stream)
            self._call("cuGraphLaunch", graph, self._stream)
            self._call("cuEventRecord", events[1], self._stream)
            self.synchronize()
            milliseconds = ctypes.c_float()
            self._call("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
            times.append(milliseconds.value / 1e3 / repeats)
        for event in events:
            self._call("cuEventDestroy_v2", event)
        self._call("cuGraphExecDestroy", graph)
        return statistics.median(times[1:])

    def _captured(self, run, repeats: int) -> ctypes.c_void_p:
        """``repeats`` calls of ``run`` as a graph that can be launched."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD_LOCAL)
        for _ in range(repeats):
            run()
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        return made

    def close(self) -> None:
        self.free()
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuModuleUnload", self._module)
        self._leave()

    def _leave(self) -> None:
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)
