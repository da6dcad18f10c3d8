"""External data: the only place where a path from inside a model is turned into bytes.

A model is data from a stranger, so a location must be a relative path without ``..``; no part of it may
be a symbolic link; it must end at a regular file with one hard link, inside the folder of the model; and
offset, length, dtype and shape must agree with the size of that file.
"""

import errno
import math
import mmap
import os
import stat

import numpy as np
import onnx_ir as ir

from sparsec.compiler.ingest.errors import IngestError, quoted


class ExternalData:
    """The files next to one model; each is opened and mapped once, read-only."""

    def __init__(self, folder: str | os.PathLike):
        self._folder = folder
        self._maps: dict[str, memoryview] = {}

    def tensor(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], entries: dict) -> ir.Tensor:
        """The tensor that ``entries`` (the key-value pairs of ``external_data``) describe."""
        if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
            raise IngestError(
                f"external data of {quoted(name)}: {dtype.name} is not supported; "
                "export the weights as INT8 or FLOAT"
            )
        location = entries.get("location", "")
        data = self._map(name, location)
        needed = math.ceil(math.prod(shape) * dtype.bitwidth / 8)
        offset = _number(name, entries, "offset", 0)
        length = _number(name, entries, "length", len(data) - offset)
        if offset + length > len(data):
            raise IngestError(
                f"external data of {quoted(name)}: bytes {offset} to {offset + length} are wanted from "
                f"{quoted(location)}, which has {len(data)}; the file is cut off or not the model's own"
            )
        if length != needed:
            raise IngestError(
                f"external data of {quoted(name)}: {length} bytes are given for {dtype.name} "
                f"{list(shape)}, which takes {needed}; export the model again"
            )
        raw = np.frombuffer(data, np.uint8, length, offset)
        kind = dtype.numpy()
        # A copy only where the file gives no aligned start.
        aligned = raw if offset % kind.alignment == 0 else raw.copy()
        return ir.Tensor(aligned.view(kind).reshape(shape), dtype=dtype, name=name)

    def _map(self, name: str, location: str) -> memoryview:
        if location not in self._maps:
            handle = self._open(name, location)
            try:
                info = os.fstat(handle)
                if not stat.S_ISREG(info.st_mode):
                    raise _refused(name, location, "is not a regular file")
                if info.st_nlink != 1:
                    raise _refused(
                        name, location, f"has {info.st_nlink} hard links; copy it to a file of its own"
                    )
                # An empty file cannot be mapped.
                view = memoryview(mmap.mmap(handle, 0, prot=mmap.PROT_READ) if info.st_size else b"")
            finally:
                os.close(handle)
            self._maps[location] = view
        return self._maps[location]

    def _open(self, name: str, location: str) -> int:
        parts = location.split("/")
        if not location or "\0" in location or "\\" in location or location.startswith("/"):
            raise _refused(name, location, "is not a relative path with forward slashes")
        if ".." in parts:
            raise _refused(name, location, "leaves the model's folder by '..'")
        parts = [part for part in parts if part not in ("", ".")] or ["."]
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            for part in parts:
                # One step at a time, so that a link in the middle of the path is refused as well.
                step = os.open(part, flags, dir_fd=handle)
                os.close(handle)
                handle = step
        except OSError as error:
            os.close(handle)
            if error.errno == errno.ELOOP:
                raise _refused(
                    name, location, "is or goes through a symbolic link; copy the real file"
                ) from None
            if error.errno == errno.ENOENT:
                raise IngestError(
                    f"external data of {quoted(name)}: {quoted(location)} is missing; "
                    "put it into the folder of the model"
                ) from None
            raise _refused(name, location, f"cannot be opened ({error.strerror})") from None
        return handle


def _number(name: str, entries: dict, key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return max(default, 0)
    # Python's int() also takes '1_0' and '+1', which no exporter writes.
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise IngestError(f"external data of {quoted(name)}: {key} {quoted(text)} is not a number of bytes")
    return int(text)


def _refused(name: str, location: str, why: str) -> IngestError:
    return IngestError(f"external data of {quoted(name)}: {quoted(location)} {why}")
