"""Keys and signatures, with the ``cryptography`` package (the extra ``sparsec[sign]``)."""

import os
from collections.abc import Callable
from pathlib import Path

from sparsec.runtime import signature

from . import contents, package
from .errors import CompileError
from .export.publish import SUMS, sums

try:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
except ImportError:
    raise CompileError("signing needs cryptography: pip install 'sparsec[sign]'") from None


def new_key(path: Path) -> Path:
    """Write a new private key to ``path``, readable by its owner alone, and return its public key's path.

    Both are PEM, as OpenSSL writes them.  Raises CompileError where one of the files exists.
    """
    public = path.with_name(path.name + ".pub")
    for existing in (path, public):
        if existing.exists():
            raise CompileError(f"{str(existing)!r} exists; a key that is in use must not be lost")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(secret)
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(encoding, form))
    return public


def private_key(path: Path, passphrase: Callable[[], str]) -> Ed25519PrivateKey:
    """The private key in the PEM file ``path``; ``passphrase`` is asked where the file is encrypted.

    Raises CompileError for a file that is no Ed25519 key, or a wrong passphrase.
    """
    data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError:
        try:
            key = serialization.load_pem_private_key(data, passphrase().encode())
        except ValueError:
            raise CompileError(f"{str(path)!r}: the passphrase is wrong") from None
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise CompileError(f"{str(path)!r} is not an Ed25519 private key in PEM; 'sparsec keygen' makes one")
    return key


def record(key: Ed25519PrivateKey, message: bytes) -> bytes:
    """The public key and its signature of ``message``, as ``sparsec.runtime.signature`` checks them."""
    return key.public_key().public_bytes_raw() + key.sign(message)


def sign(artifact: Path, key: Ed25519PrivateKey, out: Path) -> str:
    """Write ``artifact``, signed with ``key``, to ``out``; returns the key's name.  Another signature goes.

    Every byte of the artifact is checked before.
    """
    found = contents.read(artifact)
    members = found.members | {signature.MEMBER: record(key, found.manifest_bytes)}
    package.publish(out, package.layout(found.manifest_bytes, members))
    return signature.name(key.public_key().public_bytes_raw())


def sign_folder(folder: Path, key: Ed25519PrivateKey) -> str:
    """Sign the list of an exported folder's hashes, in a file beside it; returns the key's name.

    Raises CompileError for another folder, or one whose files are not those of the list.
    """
    listed = folder / SUMS
    if not listed.is_file():
        raise CompileError(f"{str(folder)!r} has no {SUMS}: it is no folder that 'sparsec export' made")
    text, name = listed.read_bytes(), signature.name(key.public_key().public_bytes_raw())
    beside = (SUMS, f"{SUMS}.sig")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in beside]
    if sums({str(path.relative_to(folder)): path.read_bytes() for path in files}) != text:
        raise CompileError(f"the files in {str(folder)!r} are not those of its {SUMS}: export it again")
    package.publish(folder / f"{SUMS}.sig", [record(key, text)])
    return name
