"""An artifact as a whole, whatever machine it is for: every member's bytes, all of them checked."""

import hashlib
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from sparsec.runtime import ArtifactError, SparsecError, container, signature
from sparsec.runtime.manifest import Manifest, parse


@dataclass(frozen=True)
class Contents:
    """``members``: name -> bytes, all but the manifest and the signature; None where there is none."""

    manifest: Manifest
    manifest_bytes: bytes = field(repr=False)
    members: dict[str, bytes] = field(repr=False)
    signature: bytes | None


def read(path: str | os.PathLike) -> Contents:
    """The artifact at ``path``; nothing of it is executed, and it need not fit this machine.

    Raises OSError where it cannot be read, and what ``sparsec.load`` raises for damaged bytes.
    """
    data = Path(path).read_bytes()
    try:
        return _checked(data)
    except SparsecError as e:
        raise type(e)(f"{os.fspath(path)!r}: {e}") from None


def _checked(data: bytes) -> Contents:
    placed = container.read_members(lambda at, size: data[at : at + size], len(data))
    found = {m.name: data[m.offset : m.offset + m.size] for m in placed}
    for m in placed:
        if zlib.crc32(found[m.name]) != m.crc:
            raise ArtifactError(f"damaged artifact: the checksum of {m.name} is wrong")
    text, record = found.pop(container.MANIFEST), found.pop(signature.MEMBER, None)
    manifest = parse(text, tuple(m for m in placed if m.name != signature.MEMBER))
    for name, wanted in manifest.hashes.items():
        if hashlib.sha256(found[name]).hexdigest() != wanted:
            raise ArtifactError(f"damaged artifact: the SHA-256 of {name} is not the manifest's")
    return Contents(manifest, text, found, record)
