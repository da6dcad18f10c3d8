"""The bytes around the members: a stored zip with exactly one spelling.

An artifact is ``local header, data`` for each member, then the central directory, then the end
record: no gaps, no comments, no compression, no flags, one date.  Each member's data begin at a
multiple of ``PAGE``, so that they can be mapped; the local header's extra field pads up to there
(id 0xD935, as Android's zipalign: the alignment as 16 bits, then zeros).

Because every header follows from ``(name, size, crc, offset)``, the reader does not interpret
headers that it did not expect: it rebuilds them and compares bytes.  So a flipped bit anywhere
outside the members' data is seen here; the data are covered by the manifest's SHA-256.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ArtifactError, FormatError

PAGE = 4096
MAX_MEMBERS = 64
MAX_SIZE = 0xFFFFFFFE  # bytes of a whole file: 32-bit zip fields, the last value means zip64
MANIFEST = "manifest.json"

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_PAD = struct.Struct("<3H")
_PAD_ID = 0xD935
_DATE = 0x21  # 1 January 1980, the first day zip knows
_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Member:
    """One member: its data are ``size`` bytes at ``offset``, its local header starts at ``header``."""

    name: str
    header: int
    offset: int
    size: int
    crc: int


def place(name: str, size: int, crc: int, header: int) -> Member:
    """The member whose local header starts at byte ``header``: its data begin on the next free page."""
    start = header + _LOCAL.size + len(name) + _PAD.size
    return Member(name, header, -(-start // PAGE) * PAGE, size, crc)


def valid_name(name: str) -> bool:
    """Whether ``name`` may be a member's name: plain ASCII, no folders, at most 64 characters."""
    return name.isascii() and _NAME.fullmatch(name.encode()) is not None


def local_header(m: Member) -> bytes:
    """The bytes from ``m.header`` up to ``m.offset``."""
    name = m.name.encode()
    extra = m.offset - m.header - _LOCAL.size - len(name)
    head = _LOCAL.pack(b"PK\3\4", 10, 0, 0, 0, _DATE, m.crc, m.size, m.size, len(name), extra)
    return head + name + _PAD.pack(_PAD_ID, extra - 4, PAGE) + bytes(extra - _PAD.size)


def central_entry(m: Member) -> bytes:
    """The member's entry in the central directory: a regular Unix file, mode 0644."""
    name = m.name.encode()
    sizes = (m.crc, m.size, m.size, len(name))
    mode = 0o100644 << 16
    head = _CENTRAL.pack(b"PK\1\2", 3 << 8 | 10, 10, 0, 0, 0, _DATE, *sizes, 0, 0, 0, 0, mode, m.header)
    return head + name


def end_record(count: int, directory_size: int, directory: int) -> bytes:
    """The last 22 bytes of the file."""
    return _END.pack(b"PK\5\6", 0, 0, count, count, directory_size, directory, 0)


def read_members(read: Callable[[int, int], bytes], size: int) -> tuple[Member, ...]:
    """The members of a file of ``size`` bytes, ``read(offset, length)`` giving its bytes.

    Raises FormatError if the file is no artifact at all, ArtifactError if it is a damaged one.
    """
    if size < 4 or read(0, 4) != b"PK\3\4":
        raise FormatError("not a sparsec artifact: it must begin with the bytes PK 03 04")
    if size < _END.size or size > MAX_SIZE:
        raise ArtifactError(f"damaged artifact: {size} bytes is not a possible size")
    magic, _, _, count, _, directory_size, directory, _ = _END.unpack(read(size - _END.size, _END.size))
    if magic != b"PK\5\6" or read(size - _END.size, _END.size) != end_record(
        count, directory_size, directory
    ):
        raise ArtifactError("damaged artifact: no zip end record in the last 22 bytes; the file is cut off")
    if not 0 < count <= MAX_MEMBERS or directory + directory_size + _END.size != size:
        raise ArtifactError("damaged artifact: the zip directory is not where the end record says")
    members = _directory(read(directory, directory_size), count)
    at = 0
    for m in members:
        if m.header != at or m.offset + m.size > directory:
            raise ArtifactError(f"damaged artifact: member {m.name} does not follow the one before it")
        if read(m.header, m.offset - m.header) != local_header(m):
            raise ArtifactError(f"damaged artifact: member {m.name} has an unexpected header")
        at = m.offset + m.size
    if at != directory:
        raise ArtifactError("damaged artifact: there are bytes that belong to no member")
    if members[0].name != MANIFEST:
        raise FormatError(f"not a sparsec artifact: its first member must be {MANIFEST}")
    return members


def _directory(raw: bytes, count: int) -> tuple[Member, ...]:
    members: list[Member] = []
    at = 0
    for _ in range(count):
        if len(raw) - at < _CENTRAL.size:
            raise ArtifactError("damaged artifact: the zip directory is cut off")
        fields = _CENTRAL.unpack_from(raw, at)
        crc, size, name_size, header = fields[7], fields[8], fields[10], fields[16]
        name = raw[at + _CENTRAL.size : at + _CENTRAL.size + name_size]
        if _NAME.fullmatch(name) is None:
            raise ArtifactError("damaged artifact: a member's name is not plain ASCII")
        member = place(name.decode(), size, crc, header)
        entry = central_entry(member)
        if raw[at : at + len(entry)] != entry:
            raise ArtifactError(f"damaged artifact: member {member.name} has an unexpected directory entry")
        if any(member.name == m.name for m in members):
            raise ArtifactError(f"damaged artifact: member {member.name} is there twice")
        members.append(member)
        at += len(entry)
    if at != len(raw):
        raise ArtifactError("damaged artifact: the zip directory has bytes after its last entry")
    return tuple(members)
