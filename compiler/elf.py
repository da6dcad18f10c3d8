"""What an ELF file says about symbols: enough to check a library before it is shipped."""

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class _Layout:
    """The records of one word size; ``fields`` places a symbol's (name, binding and type, section)."""

    header: struct.Struct
    section: struct.Struct
    symbol: struct.Struct
    dynamic: struct.Struct
    fields: tuple[int, int, int]


# The fifth and sixth byte of the file: its word size, and 1 for little-endian.
_LAYOUTS = {
    b"\1\1": _Layout(
        struct.Struct("<16s2HI3II6H"),
        struct.Struct("<10I"),
        struct.Struct("<3I2BH"),
        struct.Struct("<iI"),
        (0, 3, 5),
    ),
    b"\2\1": _Layout(
        struct.Struct("<16s2HI3QI6H"),
        struct.Struct("<2I4Q2I2Q"),
        struct.Struct("<I2BH2Q"),
        struct.Struct("<qQ"),
        (0, 1, 3),
    ),
}
_SYMTAB, _DYNAMIC_SECTION, _DYNSYM = 2, 6, 11
_NEEDED = 1


@dataclass(frozen=True)
class Symbols:
    """Global names that a file defines or wants, and the libraries that it names."""

    defined: frozenset[str]
    undefined: frozenset[str]
    needed: tuple[str, ...]


def symbols(data: bytes) -> Symbols:
    """The symbols of a little-endian ELF file: an object's table, or a library's dynamic one.

    Raises ValueError if ``data`` is no such file.
    """
    try:
        layout = _LAYOUTS.get(data[4:6]) if data[:4] == b"\x7fELF" else None
        if layout is None:
            raise ValueError("not a little-endian ELF file")
        header = layout.header.unpack_from(data)
        offset, count = header[6], header[12]
        sections = [layout.section.unpack_from(data, offset + i * layout.section.size) for i in range(count)]
        kinds = {s[1] for s in sections}
        table = _DYNSYM if _DYNSYM in kinds else _SYMTAB
        defined: set[str] = set()
        undefined: set[str] = set()
        needed: list[str] = []
        for section in sections:
            _, kind, _, _, at, size, link, _, _, _ = section
            if kind == table:
                for name, binding, index in _symbol_rows(layout, data, at, size, sections[link]):
                    if name and binding:
                        (defined if index else undefined).add(name)
            elif kind == _DYNAMIC_SECTION:
                for i in range(0, size, layout.dynamic.size):
                    tag, value = layout.dynamic.unpack_from(data, at + i)
                    if tag == _NEEDED:
                        needed.append(_text(data, sections[link], value))
    except (struct.error, IndexError):
        raise ValueError("a damaged ELF file") from None
    return Symbols(frozenset(defined), frozenset(undefined), tuple(needed))


def _symbol_rows(layout: _Layout, data: bytes, at: int, size: int, strings: tuple):
    for i in range(0, size, layout.symbol.size):
        row = layout.symbol.unpack_from(data, at + i)
        name, info, index = (row[field] for field in layout.fields)
        yield _text(data, strings, name), info >> 4, index


def _text(data: bytes, strings: tuple, at: int) -> str:
    start = strings[4] + at
    return data[start : data.index(b"\0", start)].decode()
