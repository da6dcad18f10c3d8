"""What callers pass and get: checked against the model's description, copied only if need be."""

import contextlib
import ctypes
import math
import mmap
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from .device import DeviceArray, device_array
from .errors import InputError
from .manifest import TensorInfo

_Byte = ctypes.c_char
ALIGNMENT = 64  # bytes; kernels assume it and do not check it


def empty(info: TensorInfo) -> np.ndarray:
    """An uninitialised array for ``info`` whose data are aligned to 64 bytes."""
    dtype = np.dtype(info.dtype)
    raw = np.empty(math.prod(info.shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(info.shape, dtype, raw, -address(raw) % ALIGNMENT)


class Recycler:
    """Result arrays of one context.

    The kernel zeroes fresh memory page by page, which for large arrays takes longer than computing
    them.  So the memory of a large result is kept when nobody refers to it or to a view of it any
    more, one piece for each output, and the next result takes its place.
    """

    LARGE = 1 << 20  # bytes; below, malloc keeps the memory itself

    def __init__(self, infos: Sequence[TensorInfo]):
        self._infos = infos
        self._spare: list[list[mmap.mmap]] = [[] for _ in infos]

    def take(self, given: Mapping[str, np.ndarray] = MappingProxyType({})) -> dict[str, np.ndarray]:
        """The array of each output: the ``given`` one, else an uninitialised one aligned to 64 bytes."""
        return {
            info.name: given[info.name] if info.name in given else self._array(info, spare)
            for info, spare in zip(self._infos, self._spare, strict=True)
        }

    def _array(self, info: TensorInfo, spare: list[mmap.mmap]) -> np.ndarray:
        size = math.prod(info.shape) * np.dtype(info.dtype).itemsize
        if size < self.LARGE:
            return empty(info)
        try:
            memory = spare.pop()
        except IndexError:
            memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(AttributeError, OSError):  # not every system has huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        # Views keep this very array alive, not only the memory, since the memory is no array.
        array = np.ndarray(info.shape, info.dtype, memory)
        weakref.finalize(array, _give_back, spare, memory).atexit = False
        return array


def _give_back(spare: list[mmap.mmap], memory: mmap.mmap) -> None:
    if not spare:
        spare.append(memory)


def address(array: np.ndarray | DeviceArray) -> int:
    """Where the data of a C-contiguous array begin; ``array.ctypes.data`` alone takes a microsecond."""
    if isinstance(array, DeviceArray):
        return array.address
    if array.size and array.flags.writeable:
        return ctypes.addressof(_Byte.from_buffer(array))
    return array.ctypes.data


def named(args: Sequence, infos: Sequence[TensorInfo]) -> list:
    """One value per input out of positional arguments, or of one mapping from names.

    Raises InputError that names what is missing or unknown.
    """
    if len(args) == 1 and isinstance(args[0], Mapping):
        table = args[0]
        names = [info.name for info in infos]
        for name in table:
            if name not in names:
                raise InputError(f"no input is called {name!r}: the model takes {_list(infos)}")
        for info in infos:
            if info.name not in table:
                raise InputError(f"input {info.name!r} is missing: wanted {info.dtype}{_shape(info.shape)}")
        return [table[name] for name in names]
    if len(args) != len(infos):
        raise InputError(f"the model takes {len(infos)} inputs ({_list(infos)}), found {len(args)}")
    return list(args)


def as_array(value, info: TensorInfo, stream: int | None = None) -> np.ndarray | DeviceArray:
    """``value`` as a C-contiguous array of the input's very dtype and shape.

    NumPy arrays and objects with ``__dlpack__`` that are contiguous are used in place, without a
    copy.  Nothing is converted or broadcast: InputError says what was wanted and what was found.
    ``stream``: of the GPU that the model runs on, None on CPUs; then arrays may be in its memory.
    """
    array = _viewed(value, info, "input", stream)
    if isinstance(array, DeviceArray) or array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(array)


def receivers(
    out, infos: Sequence[TensorInfo], inputs: Sequence[np.ndarray | DeviceArray], stream: int | None = None
) -> dict[str, np.ndarray | DeviceArray]:
    """The memory of the mapping ``out`` as arrays by output name, to be written in place; see ``as_array``.

    Raises InputError for what is no output, does not fit it, cannot be written, or overlaps another one
    or an input: kernels read and write in any order.
    """
    if not isinstance(out, Mapping):
        raise InputError(f"out must map output names to arrays, found {type(out).__name__}")
    known = {info.name: info for info in infos}
    found: dict[str, np.ndarray | DeviceArray] = {}
    for name, value in out.items():
        if name not in known:
            raise InputError(f"no output is called {name!r}: the model gives {_list(infos)}")
        array = _viewed(value, known[name], "output", stream)
        if not isinstance(array, DeviceArray) and not (array.flags.c_contiguous and array.flags.writeable):
            raise InputError(f"output {name!r} must be contiguous and writable to be written in place")
        if any(_overlap(array, other) for other in (*inputs, *found.values())):
            raise InputError(
                f"output {name!r} overlaps an input or another output: give it memory of its own"
            )
        found[name] = array
    return found


def _overlap(a: np.ndarray | DeviceArray, b: np.ndarray | DeviceArray) -> bool:
    if isinstance(a, DeviceArray) or isinstance(b, DeviceArray):
        return isinstance(a, DeviceArray) and a.overlaps(b)
    return np.may_share_memory(a, b)


def _viewed(value, info: TensorInfo, what: str, stream: int | None) -> np.ndarray | DeviceArray:
    """``value`` as an array that shares its memory; InputError where it is not what ``info`` says."""
    if not isinstance(value, np.ndarray):
        there = device_array(value, info, what, stream) if stream else None
        if there is not None:
            return there
        if not hasattr(value, "__dlpack__"):
            kind = type(value).__name__
            raise InputError(f"{what} {info.name!r} must be a NumPy array or have __dlpack__, found {kind}")
        try:
            value = np.from_dlpack(value)
        except Exception as e:  # whatever the other library raises: a device, a dtype, a gradient
            raise InputError(f"{what} {info.name!r} cannot be read through __dlpack__: {e}") from e
    if value.dtype != info.dtype or value.shape != info.shape:
        wanted = f"{info.dtype}{_shape(info.shape)}"
        raise InputError(f"{what} {info.name!r}: wanted {wanted}, found {value.dtype}{_shape(value.shape)}")
    return value


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _list(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(repr(info.name) for info in infos) or "none"
