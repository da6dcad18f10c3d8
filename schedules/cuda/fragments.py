"""Weights in the order in which tensor cores read them, 2:4 sparse ones with their metadata.

A warp multiplies 16 output channels by 8 stored words of 4 bytes at once: two 16-bit numbers each, or one of
32 bits.  Lane ``4 g + t`` of the warp holds, in this order, rows ``g`` and ``g + 8`` of word ``t``, then of
word ``t + 4``: four words, which it reads as one vector.  (PTX ISA, "Matrix Fragments for mma.m16n8k16",
"... mma.m16n8k8 with .tf32" and "... mma.sp.m16n8k32".)

========  ========================================  ====================================================
form      values, uint32                            metadata, uint32
========  ========================================  ====================================================
dense     ``[N/16, K/block, 4, 32, 4]``             none
2:4       ``[N/16, K/block, 2, 32, 4]``             ``[N/16, K/block, 32]``: two bits for each value
========  ========================================  ====================================================

A block is 128 bytes of inputs: 64 of 16 bits, 32 of tf32.  A word of metadata is that of row ``g`` in its
lower half and of row ``g + 8`` in its upper one, for eight stored values.  Lanes ``t`` = 0, 1 have those of
the first 32 input channels of a block, lanes 2, 3 of the second.  Both sides are padded with zeros.

Needs numpy alone, as benchmarks take it to machines that have nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsec.schedules import bits as formats
from sparsec.schedules.layout import Pattern, positions

#: Rows of a fragment; bytes of inputs of a block, which is what metadata comes in.
ROWS, BLOCK_BYTES = 16, 128
#: Stored words of a fragment; words of a lane.
WORDS, VALUES = 8, 4
#: Stored 16-bit values of a fragment, which metadata is for.
COLUMNS = 16
LANES = 32
SPARSE = Pattern(2, 4)


@dataclass(frozen=True)
class Number:
    """What tensor cores multiply: ``ptx`` is its name there, ``columns`` are those of one dense product."""

    name: str
    ptx: str
    bytes: int
    columns: int
    to_bits: Callable[[np.ndarray], np.ndarray]
    from_bits: Callable[[np.ndarray], np.ndarray]

    @property
    def block(self) -> int:
        """Inputs of a block."""
        return BLOCK_BYTES // self.bytes

    @property
    def activation(self) -> str:
        """The dtype of activations in memory."""
        return "uint16" if self.bytes == 2 else "float32"


NUMBERS = {
    number.name: number
    for number in (
        Number("float16", "f16", 2, 16, formats.to_float16, formats.from_float16),
        Number("bfloat16", "bf16", 2, 16, formats.to_bfloat16, formats.from_bfloat16),
        Number("tf32", "tf32", 4, 8, formats.to_tf32, lambda bits: bits.view(np.float32)),
    )
}


def steps(sparse: bool) -> int:
    """Fragments of a block."""
    return 2 if sparse else 4


def shapes(sparse: bool, n: int, k: int, number: Number) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of each packed array."""
    tiles, blocks = -(-n // ROWS), -(-k // number.block)
    values = ((tiles, blocks, steps(sparse), LANES, VALUES), "uint32")
    return [values, ((tiles, blocks, LANES), "uint32")] if sparse else [values]


def pack(
    sparse: bool, weight: np.ndarray, number: Number, kept: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """Packs float32 ``weight [n, k]``; ``kept`` marks what to store, else non-zeros.

    Raises ValueError where more than two of four neighbours are kept.
    """
    fill = [(0, 0), (0, -weight.shape[1] % number.block)]
    padded = np.pad(weight, fill)
    if not sparse:
        return (arranged(words_of(padded, number), steps(False)),)
    kept = padded != 0 if kept is None else np.pad(kept, fill)
    index = positions(SPARSE, padded[:, None], kept[:, None])[:, 0]
    stored = np.take_along_axis(padded, index, 1)
    return arranged(words_of(stored, number), steps(True)), _metadata(index % SPARSE.m)


def unpack(sparse: bool, arrays: tuple[np.ndarray, ...], n: int, k: int, number: Number) -> np.ndarray:
    """The dense float32 weight ``[n, k]`` that the packed arrays stand for."""
    words = rows_of(arrays[0])
    values = number.from_bits(words.view(f"uint{number.bytes * 8}"))
    if not sparse:
        return values[:n, :k]
    dense = np.zeros((values.shape[0], values.shape[1] // 2, 4), np.float32)
    pairs = (*dense.shape[:2], 2)
    np.put_along_axis(dense, _indices(arrays[1]).reshape(pairs), values.reshape(pairs), 2)
    return dense.reshape(values.shape[0], -1)[:n, :k]


def fits(weight: np.ndarray) -> bool:
    """Whether at most two of four neighbours along the last axis of ``weight`` are not 0."""
    padded = np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, -weight.shape[-1] % SPARSE.m)])
    groups = padded.reshape(*padded.shape[:-1], -1, SPARSE.m)
    return bool((np.count_nonzero(groups, axis=-1) <= SPARSE.n).all())


def place(row, word):
    """``(lane, value)`` of a word of a fragment, for integers and for expressions alike."""
    return row % 8 * 4 + word % 4, word // 4 * 2 + row // 8


def metadata_place(row, step, column):
    """``(lane, bit)`` of the metadata of a stored value of fragment ``step`` of a block."""
    return row % 8 * 4 + step * 2 + column // 8, row // 8 * 16 + column % 8 * 2


def words_of(values: np.ndarray, number: Number) -> np.ndarray:
    """``[n, words]``, uint32: the first of two numbers in the lower half."""
    return np.ascontiguousarray(number.to_bits(values)).view(np.uint32)


# In the reshaped arrays below: rows are (tile, half, g), columns (block, step, half, t).
_ORDER = (0, 3, 4, 2, 6, 5, 1)


def arranged(words: np.ndarray, count: int) -> np.ndarray:
    """Words ``[n, k]`` as values in the table above, ``count`` fragments in a block."""
    n, k = words.shape
    padded = np.pad(words, [(0, -n % ROWS), (0, 0)])
    split = padded.reshape(-1, 2, 8, k // (count * WORDS), count, 2, 4).transpose(_ORDER)
    return np.ascontiguousarray(split.reshape(*split.shape[:3], LANES, VALUES))


def rows_of(fragments: np.ndarray) -> np.ndarray:
    """``arranged``, undone; rows that are padding are there, too."""
    tiles, blocks, count = fragments.shape[:3]
    ordered = fragments.reshape(tiles, blocks, count, 8, 4, 2, 2).transpose(np.argsort(_ORDER))
    return np.ascontiguousarray(ordered.reshape(tiles * ROWS, -1))


def _metadata(index: np.ndarray) -> np.ndarray:
    """``index [n, k/2]``: 0 to 3, two ascending ones for each group."""
    n, kept = index.shape
    # Rows that are padding keep the first two positions: equal ones would be in no order.
    padded = np.concatenate([index, np.tile([0, 1], (-n % ROWS, kept // 2))])
    bits = padded.astype(np.uint32).reshape(-1, 2, 8, kept // 32, 2, 2, 8)
    halves = np.bitwise_or.reduce(bits << (np.arange(8, dtype=np.uint32) * 2), axis=-1)
    words = halves[:, 0] | halves[:, 1] << np.uint32(16)
    ordered = words.transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(ordered.reshape(*ordered.shape[:2], LANES))


def _indices(words: np.ndarray) -> np.ndarray:
    tiles, blocks, _ = words.shape
    split = words.reshape(tiles, blocks, 8, 2, 2).transpose(0, 2, 1, 3, 4)
    halves = np.stack([split & np.uint32(0xFFFF), split >> np.uint32(16)], axis=1)
    bits = halves[..., None] >> (np.arange(8, dtype=np.uint32) * 2) & np.uint32(3)
    return bits.reshape(tiles * ROWS, -1).astype(np.int64)
