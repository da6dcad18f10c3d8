"""Squares of floats turned in registers: the bridge between row-major tensors and lanes over rows."""

from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir

#: Lanes of 128 bits, within which x86 shuffles at full speed.
LANE = 4


def transpose(rows: list, bind: Callable) -> list:
    """The columns of a square of vectors; ``bind`` names an expression.

    First every 4x4 square within 128-bit lanes, then the lanes themselves, two vectors to one all the way:
    ``log2(n)`` shuffles a vector, each one instruction.
    """
    size = len(rows)

    def mix(first, second, lanes):
        return bind(tirx.Shuffle([first, second], [tir.i32(lane) for lane in lanes]))

    def pairs(first, second, unit: int, odd: bool):
        """Alternates the low (high if ``odd``) halves' units of each 128-bit lane of both vectors."""
        start, lanes = (LANE // 2 if odd else 0), []
        for base in range(0, size, LANE):
            for step in range(0, LANE // 2, unit):
                own = [base + start + step + i for i in range(unit)]
                lanes += own + [size + lane for lane in own]
        return mix(first, second, lanes)

    def blocks(vectors: list) -> list:
        """Turns a square of 128-bit lanes, of which each vector is a row."""
        if len(vectors) == 1:
            return vectors
        halves = []
        for odd in (0, 1):
            own = [base + i for base in range(odd * LANE, size, 2 * LANE) for i in range(LANE)]
            lanes = own + [size + lane for lane in own]
            halves.append(
                blocks([mix(a, b, lanes) for a, b in zip(vectors[::2], vectors[1::2], strict=True)])
            )
        return [vector for pair in zip(*halves, strict=True) for vector in pair]

    quads = []
    for i in range(0, size, LANE):
        a, b, c, d = rows[i : i + LANE]
        low, high = [(pairs(a, b, 1, odd), pairs(c, d, 1, odd)) for odd in (False, True)]
        quads.append([pairs(*half, 2, odd) for half in (low, high) for odd in (False, True)])
    columns = [blocks([quad[j] for quad in quads]) for j in range(LANE)]
    return [columns[i % LANE][i // LANE] for i in range(size)]
