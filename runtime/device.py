"""Arrays in the memory of a GPU, of torch, CuPy or anybody else, read through DLPack without a copy.

(DLPack, "C API" and "Python Specification"; the structs are those of dlpack.h before version 1.)
"""

import ctypes
import math
from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .manifest import TensorInfo

CUDA = 2  # kDLCUDA


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_KINDS = {0: "int", 1: "uint", 2: "float", 6: "bool"}


@dataclass(frozen=True)
class DeviceArray:
    """``size`` bytes of a GPU's memory at ``address``, which ``keep`` keeps alive."""

    address: int
    size: int
    keep: object

    def overlaps(self, other: object) -> bool:
        """Whether ``other`` is, in part, the same memory."""
        if not isinstance(other, DeviceArray):
            return False
        return self.address < other.address + other.size and other.address < self.address + self.size


def device_array(value, info: TensorInfo, what: str, stream: int) -> DeviceArray | None:
    """``value`` as a device array if it lies in a GPU's memory, else None.

    What others have queued on ``value`` is done before what is queued on ``stream`` from now on.
    Raises InputError where it is not of the dtype and shape of ``info``, or not contiguous.
    """
    if not hasattr(value, "__dlpack_device__") or value.__dlpack_device__()[0] != CUDA:
        return None
    try:
        capsule = value.__dlpack__(stream=stream)
        tensor = _Tensor.from_address(_get_pointer(capsule, b"dltensor"))
    except Exception as e:  # whatever the other library raises: a dtype, a gradient, a version
        raise InputError(f"{what} {info.name!r} cannot be read through __dlpack__: {e}") from e
    shape = tuple(tensor.shape[: tensor.ndim])
    kind = _KINDS.get(tensor.code, f"DLPack type {tensor.code} of ")
    dtype = kind if kind == "bool" else f"{kind}{tensor.bits}"
    if (dtype, shape, tensor.lanes) != (info.dtype, info.shape, 1):
        wanted = f"{info.dtype}{list(info.shape)}"
        raise InputError(f"{what} {info.name!r}: wanted {wanted}, found {dtype}{list(shape)}")
    if tensor.strides and not _dense(shape, tensor.strides[: tensor.ndim]):
        raise InputError(f"{what} {info.name!r} must be contiguous in the GPU's memory; make a copy that is")
    size = math.prod(shape) * np.dtype(info.dtype).itemsize
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, size, capsule)


def _dense(shape: tuple[int, ...], strides: list[int]) -> bool:
    """Whether a tensor is row-major without gaps; axes of one element may have any stride."""
    if 0 in shape:
        return True
    wanted = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return all(n == 1 or s == w for n, s, w in zip(shape, strides, wanted, strict=True))
