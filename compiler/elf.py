"""What an ELF file says about symbols: enough to check a library before it is shipped."""

import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<16s2HI3QI6H")
_SECTION = struct.Struct("<2I4Q2I2Q")
_SYMBOL = struct.Struct("<I2BH2Q")
_DYNAMIC = struct.Struct("<qQ")

_SYMTAB, _DYNAMIC_SECTION, _DYNSYM = 2, 6, 11
_NEEDED = 1


@dataclass(frozen=True)
class Symbols:
    """Global names that a file defines or wants, and the libraries that it names."""

    defined: frozenset[str]
    undefined: frozenset[str]
    needed: tuple[str, ...]


def symbols(data: bytes) -> Symbols:
    """The symbols of a 64-bit little-endian ELF file: an object's table, or a library's dynamic one.

    Raises ValueError if ``data`` is no such file.
    """
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        header = _HEADER.unpack_from(data)
        offset, count = header[6], header[12]
        sections = [_SECTION.unpack_from(data, offset + i * _SECTION.size) for i in range(count)]
        kinds = {s[1] for s in sections}
        table = _DYNSYM if _DYNSYM in kinds else _SYMTAB
        defined: set[str] = set()
        undefined: set[str] = set()
        needed: list[str] = []
        for section in sections:
            _, kind, _, _, at, size, link, _, _, _ = section
            if kind == table:
                for name, binding, index in _symbol_rows(data, at, size, sections[link]):
                    if name and binding:
                        (defined if index else undefined).add(name)
            elif kind == _DYNAMIC_SECTION:
                for i in range(0, size, _DYNAMIC.size):
                    tag, value = _DYNAMIC.unpack_from(data, at + i)
                    if tag == _NEEDED:
                        needed.append(_text(data, sections[link], value))
    except (struct.error, IndexError):
        raise ValueError("a damaged ELF file") from None
    return Symbols(frozenset(defined), frozenset(undefined), tuple(needed))


def _symbol_rows(data: bytes, at: int, size: int, strings: tuple):
    for i in range(0, size, _SYMBOL.size):
        name, info, _, index, _, _ = _SYMBOL.unpack_from(data, at + i)
        yield _text(data, strings, name), info >> 4, index


def _text(data: bytes, strings: tuple, at: int) -> str:
    start = strings[4] + at
    return data[start : data.index(b"\0", start)].decode()
