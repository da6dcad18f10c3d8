"""Plans as C: names, shapes and ports as constant tables, for libraries of every kind.

Shapes are indices into one flat array, so that a library needs few relocations when it is loaded.
"""

from collections.abc import Sequence
from math import prod

from sparsec.runtime.manifest import DTYPES

from .errors import CompileError
from .plan import Port

# dtype -> DLPack's type code and bits
DLPACK = {
    "bool": (6, 8),
    "bfloat16": (4, 16),
    **{f"float{bits}": (2, bits) for bits in (16, 32, 64)},
    **{f"int{bits}": (0, bits) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (1, bits) for bits in (8, 16, 32, 64)},
}


class Dims:
    """The table of distinct shapes; ``at`` gives the index of a shape's first extent."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._next = 0

    def at(self, shape: tuple[int, ...]) -> int:
        if shape not in self._places:
            strides = [prod(shape[i + 1 :]) for i in range(len(shape))]
            self._places[shape] = self._next
            self._next += 2 * len(shape)
            if shape:
                self.lines.append("    " + ", ".join(map(str, [*shape, *strides])) + ",")
        return self._places[shape]


def port(port: Port, dims: Dims) -> str:
    if port.dtype not in DTYPES:
        raise CompileError(
            f"{port.name!r} has dtype {port.dtype!r}; a model's border takes {', '.join(sorted(DTYPES))}"
        )
    size = prod(port.shape) * DLPACK[port.dtype][1] // 8
    name, at = c_string(port.name), dims.at(port.shape)
    return f'    {{{name}, "{port.dtype}", {len(port.shape)}, dims + {at}, {size}}},'


def table(kind: str, name: str, rows: Sequence[str]) -> list[str]:
    if not rows:  # C has no empty arrays
        return [f"static const {kind} {name}[1];", ""]
    return [f"static const {kind} {name}[] = {{", *rows, "};", ""]


def c_string(text: str) -> str:
    """``text`` as a C string literal; bytes that are not plain ASCII, and ``?`` (trigraphs), in octal."""
    if "\0" in text:
        raise CompileError(f"the name {text!r} has a zero byte, which C strings cannot hold; rename it")
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'
