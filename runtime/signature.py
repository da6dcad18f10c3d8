"""Who vouches for an artifact: an Ed25519 signature of its manifest, in a member of its own.

The manifest holds the SHA-256 of every other member, so its signature covers the whole file.  The member
is the public key and the signature of the manifest's bytes, 32 and 64 bytes, so that other tools can check
it: ``openssl pkeyutl -verify -rawin``.
"""

import base64
import os
import re
from pathlib import Path

from . import ed25519
from .errors import InputError, SignatureError

MEMBER = "signature.bin"
SIZE = 96  # bytes: key and signature

# What comes before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/]{59}=)\s+-----END PUBLIC KEY-----")


def public_key(key: bytes | str | os.PathLike) -> bytes:
    """The 32 bytes of a public key: as they are, or out of a PEM file (``BEGIN PUBLIC KEY``).

    Raises InputError for anything else.
    """
    if isinstance(key, bytes):
        if len(key) != 32:
            raise InputError(f"an Ed25519 public key has 32 bytes, found {len(key)}")
        return key
    path = os.fspath(key)
    try:
        text = Path(path).read_bytes()
    except OSError as e:
        raise InputError(f"cannot read the public key {path!r}: {e.strerror}") from e
    found = _PEM.search(text)
    data = base64.b64decode(found[1]) if found else b""
    if len(data) != 44 or not data.startswith(_PREFIX):
        raise InputError(f"{path!r} is not an Ed25519 public key in PEM: 'sparsec keygen' makes a pair")
    return data[12:]


def check(manifest: bytes, record: bytes | None, key: bytes) -> None:
    """Raise SignatureError unless ``record``, the member's content, signs ``manifest`` with ``key``."""
    if record is None:
        raise SignatureError(f"it is not signed; a signature by the key {name(key)} is required")
    if record[:32] != key:
        raise SignatureError(f"it is signed by the key {name(record[:32])}; the key {name(key)} is required")
    if not ed25519.verify(key, record[32:], manifest):
        raise SignatureError(f"its signature by the key {name(key)} is wrong: it was changed after signing")


def name(key: bytes) -> str:
    """How messages call a key: the first half of its bytes in hexadecimal."""
    return key[:16].hex()
