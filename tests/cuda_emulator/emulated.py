"""The emulated kernels of one source, to be launched from Python."""

import ctypes
from collections.abc import Sequence

import numpy as np

from cuda_emulator.build import library

#: In the order of `emu_order` in `emulator.h`.
ORDERS = ("round_robin", "warps_forwards", "warps_backwards")


class EmulationError(Exception):
    """A launch that went wrong: kernel, block, thread and what they did."""


class _Kernel(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.c_int),
        ("max_threads", ctypes.c_int),
    )


class Emulated:
    """``Emulated(source).launch(kernel, grid, block, args)``.

    ``source`` is CUDA C; what it may contain is in `cuda.h` and `ptx.h`.  ``checked`` watches every access.
    """

    def __init__(self, source: str, checked: bool = False):
        self._library = ctypes.CDLL(str(library(source, checked)))
        self._library.emu_kernels.restype = ctypes.POINTER(_Kernel)
        self._library.emu_allow.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._library.emu_forbid.argtypes = (ctypes.c_void_p,)
        table = self._library.emu_kernels()
        self.parameters: dict[str, int] = {}
        while table[len(self.parameters)].name:
            row = table[len(self.parameters)]
            self.parameters[row.name.decode()] = row.parameters

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[np.ndarray | np.generic],
        shared_bytes: int = 0,
        order: str = ORDERS[0],
    ) -> None:
        """Runs ``name``; arrays are passed by address and changed in place, NumPy scalars by value.

        ``grid`` and ``block`` have one to three extents, ``shared_bytes`` is dynamic shared memory.
        Raises EmulationError where the launch or a thread does what it must not.
        """
        if name in self.parameters and len(args) != self.parameters[name]:
            raise EmulationError(f"{name}: required {self.parameters[name]} arguments, found {len(args)}")
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        if any(not a.flags.c_contiguous for a in arrays):
            raise ValueError(f"{name}: required contiguous arrays")
        # An argument is the address of its value: of a pointer, or of the number itself.
        values = [np.array([a.ctypes.data if isinstance(a, np.ndarray) else a]) for a in args]
        message = ctypes.create_string_buffer(1024)
        for array in arrays:
            self._library.emu_allow(array.ctypes.data, array.nbytes)
        failed = self._library.emu_launch(
            name.encode(),
            _extents(grid),
            _extents(block),
            shared_bytes,
            (ctypes.c_void_p * len(args))(*(v.ctypes.data for v in values)),
            ORDERS.index(order),
            message,
            len(message),
        )
        for array in arrays:
            self._library.emu_forbid(array.ctypes.data)
        if failed:
            raise EmulationError(message.value.decode())


def _extents(extents: Sequence[int]):
    return (ctypes.c_uint * 3)(*extents, *(1,) * (3 - len(extents)))
