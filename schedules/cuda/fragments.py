"""Weights in the order in which tensor cores read them, 2:4 sparse ones with their metadata.

A warp multiplies 16 output channels by 16 input channels (dense) or 32 (2:4) at once.  Lane ``4 g + t`` of
the warp holds, in this order, rows ``g`` and ``g + 8`` of the left 8 stored columns, then of the right 8,
columns ``2 t`` and ``2 t + 1`` of each: eight values, which it reads as one vector.  (PTX ISA, "Matrix
Fragments for mma.m16n8k16" and "... for mma.sp.m16n8k32".)

========  ========================================  ====================================================
form      values                                    metadata
========  ========================================  ====================================================
dense     ``[N/16, K/64, 4, 32, 8]``                none
2:4       ``[N/16, K/64, 2, 32, 8]``                uint32 ``[N/16, K/64, 32]``: two bits for each value
========  ========================================  ====================================================

A word of metadata is that of row ``g`` in its lower half and of row ``g + 8`` in its upper one, for eight
stored columns.  Lanes ``t`` = 0, 1 have those of the first 32 input channels of a block, lanes 2, 3 of the
second. Both sides are padded with zeros.
"""

import numpy as np

from sparsec.schedules.layout import Pattern, positions

#: Rows of a fragment, and input channels of a block, which is what metadata comes in.
ROWS, BLOCK = 16, 64
#: Stored columns of a fragment.
COLUMNS = 16
LANES, VALUES = 32, 8
SPARSE = Pattern(2, 4)


def steps(sparse: bool) -> int:
    """Fragments of a block."""
    return 2 if sparse else 4


def shapes(sparse: bool, n: int, k: int, dtype: str) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of each packed array."""
    tiles, blocks = -(-n // ROWS), -(-k // BLOCK)
    values = ((tiles, blocks, steps(sparse), LANES, VALUES), dtype)
    return [values, ((tiles, blocks, LANES), "uint32")] if sparse else [values]


def pack(sparse: bool, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Packs ``weight [n, k]``, whose dtype the values keep; ``kept`` marks what to store, else non-zeros.

    Raises ValueError where more than two of four neighbours are kept.
    """
    if not sparse:
        return (_fragments(weight, steps(False)),)
    padded = np.pad(weight, [(0, 0), (0, -weight.shape[1] % SPARSE.m)])
    kept = padded != 0 if kept is None else np.pad(kept, [(0, 0), (0, -weight.shape[1] % SPARSE.m)])
    index = positions(SPARSE, padded[:, None], kept[:, None])[:, 0]
    values = _fragments(np.take_along_axis(padded, index, 1), steps(True))
    return values, _metadata(index % SPARSE.m)


def unpack(sparse: bool, arrays: tuple[np.ndarray, ...], n: int, k: int) -> np.ndarray:
    """The dense weight ``[n, k]`` that the packed arrays stand for."""
    values = _rows(arrays[0])
    if not sparse:
        return values[:n, :k]
    dense = np.zeros((values.shape[0], values.shape[1] // 2, 4), values.dtype)
    pairs = (*dense.shape[:2], 2)
    np.put_along_axis(dense, _indices(arrays[1]).reshape(pairs), values.reshape(pairs), 2)
    return dense.reshape(values.shape[0], -1)[:n, :k]


def place(row, column):
    """``(lane, value)`` of an element of a fragment, for integers and for expressions alike."""
    return row % 8 * 4 + column % 8 // 2, (column // 8 * 2 + row // 8) * 2 + column % 2


def metadata_place(row, step, column):
    """``(lane, bit)`` of the metadata of a stored column of fragment ``step`` of a block."""
    return row % 8 * 4 + step * 2 + column // 8, row // 8 * 16 + column % 8 * 2


# In the reshaped arrays below: rows are (tile, half, g), columns (block, step, half, t, pair).
_ORDER = (0, 3, 4, 2, 6, 5, 1, 7)


def _split(array: np.ndarray, count: int) -> np.ndarray:
    n, k = array.shape
    block = count * COLUMNS
    padded = np.pad(array, [(0, -n % ROWS), (0, -k % block)])
    return padded.reshape(-1, 2, 8, padded.shape[1] // block, count, 2, 4, 2)


def _fragments(array: np.ndarray, count: int) -> np.ndarray:
    ordered = _split(array, count).transpose(_ORDER)
    return np.ascontiguousarray(ordered.reshape(*ordered.shape[:3], LANES, VALUES))


def _rows(fragments: np.ndarray) -> np.ndarray:
    tiles, blocks, count = fragments.shape[:3]
    ordered = fragments.reshape(tiles, blocks, count, 8, 4, 2, 2, 2).transpose(np.argsort(_ORDER))
    return ordered.reshape(tiles * ROWS, -1)


def _metadata(index: np.ndarray) -> np.ndarray:
    """``index [n, k/2]``: 0 to 3, two ascending ones for each group."""
    split = _split(index.astype(np.uint32), steps(True))
    # Of a group that is padding the first two positions count as kept: equal ones are in no order.
    nothing = (split == 0).all(axis=-1, keepdims=True)
    split = np.where(nothing, np.arange(2, dtype=np.uint32), split)
    bits = split.reshape(*split.shape[:6], 8)
    shifts = np.arange(8, dtype=np.uint32) * 2
    halves = np.bitwise_or.reduce(bits << shifts, axis=-1)
    words = halves[:, 0] | halves[:, 1] << np.uint32(16)
    ordered = words.transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(ordered.reshape(*ordered.shape[:2], LANES).astype(np.uint32))


def _indices(words: np.ndarray) -> np.ndarray:
    tiles, blocks, _ = words.shape
    split = words.reshape(tiles, blocks, 8, 2, 2).transpose(0, 2, 1, 3, 4)
    halves = np.stack([split & np.uint32(0xFFFF), split >> np.uint32(16)], axis=1)
    bits = halves[..., None] >> (np.arange(8, dtype=np.uint32) * 2) & np.uint32(3)
    return bits.reshape(tiles * ROWS, -1).astype(np.int64)
