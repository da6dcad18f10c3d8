"""Packed forms of contraction weights, one for all CPU levels.

Output channels are cut into panels of ``PANEL`` lanes; the last panel is padded with zeros.  A weight arrives
as ``[O, T, C]``: output channels, kernel taps (1 for a matrix), input channels.

========  ================================================  ============================================
form      values                                            index
========  ================================================  ============================================
dense     ``[O/16, T, C, 16]``                              none
shared    ``[O/16, T, kept, 16]``, kept = C//m*n + C%m      ``[O/block, T, kept]``: the input channel
lanes     ``[O/16, T, slots + C%16, 16]``                   ``[O/16, T, slots, 2]``: 16 choices of 4 bits
gather    ``[O/16, T, kept, 16]``                           ``[O/16, T, kept, 16]``: the input channel
========  ================================================  ============================================

*shared*: the block is a multiple of 16 channels, so a panel has one list of positions.
*lanes*: any other block where ``m`` divides 16.  Input channels are cut into windows of 16, each with
``16 * n / m`` slots; lane ``l`` of a slot reads channel ``window_start + choice``, its choice being bits
``4 * (l % 8)`` and up of int32 word ``l // 8``.  Choices ascend from slot to slot, so for m <= 8 the first
half of the slots reads the first eight channels.  The ``C % 16`` channels after the last window are stored
dense, and a weight with fewer than 16 channels is stored in the dense form.  Where values are multiplied in
words of several (``elements``), so many slots make one, with all choices of a lane beside each other.
*gather*: what remains.

Sparse weights that meet many rows are stored in strips instead, see ``layout_strips``.

A tail of ``C`` shorter than ``m`` is kept whole in every form.  Channel numbers are int16 where they fit.
"""

from dataclasses import dataclass

import numpy as np

PANEL = 16
#: Input channels that a slot of the *lanes* form chooses from: one AVX-512 register, two of AVX2.
WINDOW = 16
#: Bits of one choice, int32 words of 16 choices, and choices in a word.
BITS, WORDS, PER_WORD = 4, 2, 8


@dataclass(frozen=True)
class Pattern:
    """Of ``m`` neighbouring input channels ``n`` are kept; ``block`` output channels keep the same ones.

    ``scattered``: only on average, the kept ones may lie anywhere.
    """

    n: int = 1
    m: int = 1
    block: int = 1
    scattered: bool = False

    def __post_init__(self):
        if not (1 <= self.n <= self.m and self.block >= 1):
            raise ValueError(
                f"Pattern: required 1 <= n <= m and block >= 1, found {self}; correct the pattern"
            )

    @property
    def dense(self) -> bool:
        return self.n == self.m and not self.scattered

    def form(self, channels: int) -> str:
        """How a weight with this many input channels is stored; see the table above."""
        if self.dense:
            return "dense"
        if self.block % PANEL == 0:
            return "shared"
        if WINDOW % self.m:
            return "gather"
        return "lanes" if channels >= WINDOW else "dense"

    @property
    def window_slots(self) -> int:
        """Slots of one window in the *lanes* form."""
        return self.n * WINDOW // self.m

    def kept(self, channels: int) -> int:
        """Stored values per output channel and tap."""
        if self.form(channels) == "dense":
            return channels
        if self.form(channels) == "lanes":
            return self.slots(channels) + channels % WINDOW
        return self.kept_inputs(channels)

    def kept_inputs(self, channels: int) -> int:
        """Positions that the pattern keeps, per output channel and tap."""
        return channels // self.m * self.n + channels % self.m

    def slots(self, channels: int) -> int:
        return channels // WINDOW * self.window_slots


DENSE = Pattern()


def index_dtype(channels: int) -> str:
    return "int16" if channels <= 32767 else "int32"


def panels(out_channels: int) -> int:
    return -(-out_channels // PANEL)


def shapes(
    pattern: Pattern, out: int, taps: tuple[int, ...], channels: int
) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of each packed array; ``taps`` is the shape that stands for T (``()`` for a matrix)."""
    values = ((panels(out), *taps, pattern.kept(channels), PANEL), "float32")
    match pattern.form(channels):
        case "dense":
            return [values]
        case "shared":
            rows = -(-out // pattern.block)
            return [values, ((rows, *taps, pattern.kept(channels)), index_dtype(channels))]
        case "lanes":
            return [values, ((panels(out), *taps, pattern.slots(channels), WORDS), "int32")]
        case _:
            return [values, ((panels(out), *taps, pattern.kept(channels), PANEL), index_dtype(channels))]


def pack(pattern: Pattern, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Packs float32 ``weight [O, T, C]``; ``kept`` (bool, same shape) says which positions the pattern keeps.

    Without ``kept`` these are the non-zeros.  A group that keeps fewer than ``n`` is filled with its first
    free positions.  Raises ValueError when a group keeps more than ``n``.
    """
    weight = np.asarray(weight, np.float32)
    if weight.ndim != 3:
        raise ValueError(f"pack: required a weight of rank 3 [O, T, C], found shape {weight.shape}")
    channels = weight.shape[2]
    form = pattern.form(channels)
    if form == "dense":
        return (_to_panels(weight),)
    position = positions(pattern, weight, weight != 0 if kept is None else np.asarray(kept, bool))
    if form == "lanes":
        return _pack_lanes(pattern, weight, position)
    values = _to_panels(np.take_along_axis(weight, position, 2))
    if form == "shared":
        index = position[:: pattern.block]
    else:
        index = _to_panels(position)
    return values, np.ascontiguousarray(index.astype(index_dtype(channels)))


def unpack(pattern: Pattern, arrays: tuple[np.ndarray, ...], out: int, channels: int) -> np.ndarray:
    """The dense weight ``[O, T, C]`` that the packed arrays stand for."""
    values = _from_panels(arrays[0], out)
    form = pattern.form(channels)
    if form == "dense":
        return values
    if form == "shared":
        position = np.repeat(arrays[1], pattern.block, 0)[:out]
    elif form == "gather":
        position = _from_panels(arrays[1], out)
    else:
        position = _lane_positions(pattern, arrays[1], out, channels)
    dense = np.zeros((*values.shape[:2], channels), np.float32)
    np.put_along_axis(dense, position.astype(np.int64), values, 2)
    return dense


def _to_panels(array: np.ndarray) -> np.ndarray:
    """``[O, T, K]`` to ``[O/16, T, K, 16]``, padded with zeros."""
    out, taps, depth = array.shape
    padded = np.zeros((panels(out) * PANEL, taps, depth), array.dtype)
    padded[:out] = array
    return np.ascontiguousarray(padded.reshape(-1, PANEL, taps, depth).transpose(0, 2, 3, 1))


def _from_panels(array: np.ndarray, out: int) -> np.ndarray:
    count, taps, depth, lanes = array.shape
    return array.transpose(0, 3, 1, 2).reshape(count * lanes, taps, depth)[:out]


def positions(pattern: Pattern, weight: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Kept channels ``[O, T, C//m*n + C%m]``, ascending within a group, equal within a block."""
    out, taps, channels = weight.shape
    if kept.shape != weight.shape:
        raise ValueError(f"pack: required kept of the weight's shape {weight.shape}, found {kept.shape}")
    blocks = -(-out // pattern.block)
    padded = np.zeros((blocks * pattern.block, taps, channels), bool)
    padded[:out] = kept
    used = padded.reshape(blocks, pattern.block, taps, channels).any(1)
    full = channels // pattern.m * pattern.m
    groups = used[..., :full].reshape(blocks, taps, -1, pattern.m)
    count = groups.sum(-1)
    if count.size and count.max() > pattern.n:
        block, tap, group = np.unravel_index(count.argmax(), count.shape)
        raise ValueError(
            f"pack: required at most {pattern.n} of {pattern.m} kept positions in blocks of "
            f"{pattern.block} output channels, found {count.max()} in block {block}, tap {tap}, "
            f"group {group}; store this weight dense"
        )
    # Used positions first, then free ones, each in ascending order: a stable sort on "free".
    chosen = np.sort(np.argsort(~groups, axis=-1, kind="stable")[..., : pattern.n], axis=-1)
    chosen = chosen + (np.arange(groups.shape[2]) * pattern.m)[:, None]
    tail = np.broadcast_to(np.arange(full, channels), (blocks, taps, channels - full))
    rows = np.concatenate([chosen.reshape(blocks, taps, -1), tail], axis=-1)
    return np.repeat(rows, pattern.block, 0)[:out]


def _pack_lanes(pattern: Pattern, weight: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, ...]:
    slots = pattern.slots(weight.shape[2])
    covered = weight.shape[2] // WINDOW * WINDOW
    chosen = position[..., :slots]
    values = np.concatenate([np.take_along_axis(weight, chosen, 2), weight[..., covered:]], axis=-1)
    return _to_panels(values), choice_words(_to_panels(chosen % WINDOW)[..., None])


def _lane_positions(pattern: Pattern, words: np.ndarray, out: int, channels: int) -> np.ndarray:
    offset = _from_panels(choices_of(words)[..., 0], out).astype(np.int64)
    start = np.arange(pattern.slots(channels)) // pattern.window_slots * WINDOW
    covered = channels // WINDOW * WINDOW
    tail = np.broadcast_to(np.arange(covered, channels), (*offset.shape[:2], channels - covered))
    return np.concatenate([offset + start, tail], axis=-1)


def choice_words(choices: np.ndarray) -> np.ndarray:
    """``[..., 16, group]`` choices as int32 ``[..., 2 * group]``, eight in a word, the first one lowest."""
    split = choices.astype(np.uint32).reshape(*choices.shape[:-2], -1, PER_WORD)
    words = np.bitwise_or.reduce(split << _shifts(), axis=-1)
    return np.ascontiguousarray(words.astype(np.uint32)).view(np.int32)


def choices_of(words: np.ndarray) -> np.ndarray:
    """``choice_words``, undone."""
    split = (np.ascontiguousarray(words).view(np.uint32)[..., None] >> _shifts()) & np.uint32(WINDOW - 1)
    return split.reshape(*words.shape[:-1], PANEL, -1)


def _shifts() -> np.ndarray:
    return np.arange(PER_WORD, dtype=np.uint32) * np.uint32(BITS)
