"""An artifact on disk, checked: what it contains, which library fits this CPU, and its mapped bytes.

The order of the checks is part of the format (docs/artifact-format.md): structure, sizes, format
number, target and CPU features, hashes.  Only then does anything of it get executed.
"""

import hashlib
import mmap
import os
import platform
import stat
import zlib

import numpy as np

from . import container, cpu, signature
from .errors import ArtifactError, InputError, SparsecError, TargetError
from .manifest import MAX_BYTES, WEIGHTS, Library, Manifest, parse

_CHUNK = 1 << 18  # bytes: half of a common L2 cache


class Artifact:
    """An open artifact whose every byte has been checked.

    ``manifest``; ``library``, the best one that this CPU can run; ``code``, its bytes;
    ``weights``, the address of the mapped weights (0 if there are none); ``kernels``, the code for
    GPUs (empty if there is none).
    """

    manifest: Manifest
    library: Library
    code: bytes
    kernels: bytes
    weights: int

    def __init__(self, path: str | os.PathLike, key: bytes | None = None, variant: str | None = None):
        """Open and check; raises a SparsecError whose text begins with the path.

        ``key``: the 32 bytes of the public key that must have signed it; None: none has to.  ``variant``: of
        several the one to take; None: the first.
        """
        self.path = os.fspath(path)
        self.code = self.kernels = b""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise ArtifactError(f"cannot open {self.path!r}: {e.strerror}") from e
        try:
            self._check(fd, key, variant)
        except SparsecError as e:
            raise type(e)(f"{self.path!r}: {e}") from None
        except OSError as e:
            raise ArtifactError(f"cannot read {self.path!r}: {e.strerror}") from e
        finally:
            os.close(fd)

    def _check(self, fd: int, key: bytes | None, variant: str | None) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError("not a regular file")

        def read(offset: int, length: int) -> bytes:
            data = os.pread(fd, length, offset)
            if len(data) != length:
                raise ArtifactError(
                    f"damaged artifact: only {len(data)} of {length} bytes at offset {offset}"
                )
            return data

        everything = container.read_members(read, status.st_size)
        members = tuple(m for m in everything if m.name != signature.MEMBER)
        head = members[0]
        if head.size > MAX_BYTES:
            raise ArtifactError(f"damaged artifact: {head.name} has {head.size} bytes, at most {MAX_BYTES}")
        text = read(head.offset, head.size)
        if zlib.crc32(text) != head.crc:
            raise ArtifactError(f"damaged artifact: the checksum of {head.name} is wrong")
        record = None
        for m in everything:
            if m.name == signature.MEMBER:
                record = read(m.offset, min(m.size, signature.SIZE))
                if m.size != signature.SIZE or zlib.crc32(record) != m.crc:
                    raise ArtifactError(f"damaged artifact: {m.name} has a wrong size or checksum")
        if key is not None:
            signature.check(text, record, key)
        self.manifest = parse(text, members)
        self.library = choose(self.manifest, variant)
        for m in members[1:]:
            if m.name == self.library.member:
                self.code = read(m.offset, m.size)
                digest = hashlib.sha256(self.code)
            elif m.name == self.library.kernels and self.manifest.gpu:
                self.kernels = read(m.offset, m.size)
                digest = hashlib.sha256(self.kernels)
            else:
                digest = _hash(fd, m)
            if digest.hexdigest() != self.manifest.hashes[m.name]:
                raise ArtifactError(f"damaged artifact: the SHA-256 of {m.name} is not the manifest's")
        self._map_weights(fd, members)

    def _map_weights(self, fd: int, members: tuple[container.Member, ...]) -> None:
        self.weights = 0
        for m in members:
            if m.name == WEIGHTS and m.size:
                # The whole file: a member's page need not be a page of this machine.
                self._mapped = np.frombuffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), np.uint8)
                self.weights = self._mapped.ctypes.data + m.offset


def _hash(fd: int, m: container.Member):
    """The SHA-256 of a member that only passes by, through a buffer that stays in the cache.

    Read, not mapped: an I/O error is then an exception and no signal.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    at, end = m.offset, m.offset + m.size
    while at < end:
        count = os.preadv(fd, [buffer[: min(_CHUNK, end - at)]], at)
        if not count:
            raise ArtifactError(f"damaged artifact: no bytes at offset {at}; the file is being changed")
        digest.update(buffer[:count])
        at += count
    return digest


def choose(manifest: Manifest, variant: str | None = None) -> Library:
    """The first library of ``variant`` (None: the first) that this machine can run.

    TargetError names what is missing for the least one; InputError, of another variant, those that there are.
    """
    variants = tuple(dict.fromkeys(library.variant for library in manifest.libraries))
    if variant is None:
        variant = variants[0]
    if variant not in variants:
        there = f"it has {', '.join(variants)}" if any(variants) else "it has none"
        raise InputError(f"the artifact has no variant {variant!r}; {there}")
    here = (cpu.architecture(), platform.system().lower())
    own = [
        library
        for library in manifest.libraries
        if (library.architecture, manifest.system) == here and library.variant == variant
    ]
    if not own:
        machines = " or ".join(dict.fromkeys(library.architecture for library in manifest.libraries))
        wanted = f"{machines} {manifest.system}"
        raise TargetError(
            f"the artifact is for {wanted}, this machine is {' '.join(here)}; compile it for this one"
        )
    found = cpu.features()
    missing: list[str] = []
    for library in own:
        missing = [f for f in library.features if f not in found]
        if not missing:
            return library
    raise TargetError(
        f"this CPU lacks {', '.join(missing)}, which level {own[-1].level} needs; compile for a lower level"
    )
