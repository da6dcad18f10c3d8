"""Deterministic archives: tar with one owner and no clock, and Unix ar."""

import io
import tarfile
from collections.abc import Mapping, Sequence

from .publish import File


def tar(files: Mapping[str, File], *, prefix: str = "") -> bytes:
    """A tar of ``files`` (path -> File) and the folders they need, in the order of names; root's, of 1970."""
    out = io.BytesIO()
    folders = {"/".join(path.split("/")[:i]) for path in files for i in range(1, path.count("/") + 1)}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as opened:
        for path in sorted({*folders, *files}):
            info = tarfile.TarInfo(prefix + path)
            if path in files:
                info.size, info.mode = len(files[path].data), files[path].mode
                opened.addfile(info, io.BytesIO(files[path].data))
            else:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                opened.addfile(info)
    return out.getvalue()


def ar(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A Unix archive of ``members`` (name of at most 15 characters, content), as deb(5) has it."""
    pieces = [b"!<arch>\n"]
    for name, data in members:
        pieces.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
        pieces.append(data + b"\n" * (len(data) % 2))
    return b"".join(pieces)
