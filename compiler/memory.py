"""Static memory plan: offsets for buffers whose lifetimes are known.

Greedy by size: the largest buffer is placed first, each at the lowest offset where it overlaps no
placed buffer that is alive at the same time (Pisarchyk & Lee, "Efficient Memory Management for Deep
Neural Net Inference", 2020, section 5.2).
"""

from dataclasses import dataclass

from sparsec.compiler.plan import ALIGN


@dataclass
class Lifetime:
    """A buffer of ``size`` bytes that is written at step ``first`` and last read at step ``last``."""

    size: int
    first: int
    last: int


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def assign_offsets(buffers: list[Lifetime]) -> tuple[list[int], int]:
    """Byte offsets (multiples of ``ALIGN``) in the order of ``buffers``, and the arena's size."""
    offsets = [0] * len(buffers)
    placed: list[int] = []
    total = 0
    for index in sorted(range(len(buffers)), key=lambda i: (-aligned(buffers[i].size), i)):
        buffer = buffers[index]
        neighbours = sorted(
            (offsets[other], offsets[other] + aligned(buffers[other].size))
            for other in placed
            if buffers[other].first <= buffer.last and buffer.first <= buffers[other].last
        )
        offset = 0
        for start, end in neighbours:
            if start - offset >= aligned(buffer.size):
                break
            offset = max(offset, end)
        offsets[index] = offset
        placed.append(index)
        total = max(total, offset + aligned(buffer.size))
    return offsets, total
