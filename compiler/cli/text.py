"""Numbers and tables as people read them."""

import unicodedata
from collections.abc import Sequence


def size(count: float) -> str:
    """Bytes in decimal units: ``812 B``, ``4.1 kB``, ``12.0 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95 or unit == "GB":
            return f"{count:.1f} {unit}"
    raise AssertionError("the loop returns")


def machines(found: dict) -> str:
    """What an artifact runs on: ``x86_64 linux (levels v4, v3)``, several architectures with commas."""
    levels: dict[str, list[str]] = {}
    for library in found["libraries"]:
        machine = library.get("architecture") or found["target"]["architecture"]
        levels.setdefault(machine, []).append(library["level"])
    system = found["target"]["system"]
    return ", ".join(f"{machine} {system} (levels {', '.join(names)})" for machine, names in levels.items())


def duration(seconds: float) -> str:
    """``0.042 ms``, ``7.31 ms``, ``238 ms``, ``12.3 s``."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    milliseconds = seconds * 1e3
    if milliseconds >= 100:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds:.2f} ms" if milliseconds >= 1 else f"{milliseconds:.3f} ms"


def count(number: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shape(sizes: Sequence[int]) -> str:
    """``1x3x224x224``; ``scalar`` for none."""
    return "x".join(str(n) for n in sizes) or "scalar"


def width(text: str) -> int:
    """Columns that ``text`` takes in a terminal."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lines of a plain table.  ``align`` has ``<`` or ``>`` for each column."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(width(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        parts = []
        for text, columns, side in zip(row, widths, align, strict=True):
            pad = " " * (columns - width(text))
            parts.append(pad + text if side == ">" else text + pad)
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("-" * columns for columns in widths))
    return lines


def visible(text: str) -> str:
    """``text`` on one line: line breaks and other control characters are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
