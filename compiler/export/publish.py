"""A folder of files that appears whole or not at all, and the list of its hashes."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparsec.compiler.errors import CompileError

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class File:
    """A file's content, and whether it is a program."""

    data: bytes = field(repr=False)
    program: bool = False

    @property
    def mode(self) -> int:
        return 0o755 if self.program else 0o644


def with_sums(files: Mapping[str, File]) -> dict[str, File]:
    """``files`` and the list of their hashes."""
    return {**files, SUMS: File(sums({path: file.data for path, file in files.items()}))}


def sums(files: Mapping[str, bytes]) -> bytes:
    """The hashes of ``files`` (path -> content), as ``sha256sum -c`` reads them."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(files.items())]
    return "".join(lines).encode()


def write_folder(to: Path, files: Mapping[str, File]) -> None:
    """Write ``files`` to the folder ``to``, which must not exist or be empty, by one rename at the end.

    Raises CompileError (one line) where that cannot be; what was there before is unchanged.
    """
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise CompileError(f"{str(to)!r} exists and is not an empty folder; remove it or choose another")
    temporary = to.parent / f".{to.name}-{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir(parents=True)
        for path, file in files.items():
            _write(temporary / path, file)
        os.replace(temporary, to)
        _sync(to.parent)
    except OSError as e:
        what = os.strerror(e.errno) if e.errno else str(e)
        raise CompileError(f"cannot write {str(to)!r}: {what}; nothing is left there") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(path: Path, file: File) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as opened:
        opened.write(file.data)
        opened.flush()
        os.fchmod(opened.fileno(), file.mode)
        os.fsync(opened.fileno())


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
