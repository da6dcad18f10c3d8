"""The *strips* form of a sparse weight: compressed rows, cut along the input, for lanes over rows.

A strip is ``width`` neighbouring output channels that keep the same inputs.  The input of a strip, its taps
by its channels, is cut into blocks that a kernel holds in a cache; a strip of a block is a run of slots.

========  =======================  =======  ===========================================================
array     shape                    dtype    content
========  =======================  =======  ===========================================================
values    ``[slots, width]``       float32  the weights of a slot
position  ``[slots]``              int16    its input, counted from the start of the block
start     ``[blocks*strips + 1]``  int32    where each run starts; that of strip s, block b is b*strips + s
========  =======================  =======  ===========================================================

Runs are filled up to a multiple of ``unroll`` with zeros; output channels to a multiple of 16.  Slots behind
the last run are there so that layers with nearly as many non-zeros share one kernel.
"""

from dataclasses import dataclass, replace

import numpy as np

from sparsec.schedules.layout import PANEL, WINDOW, Pattern

#: Channels of a strip where the pattern allows it: each activation is read once for four multiply-adds.
WIDTH = 4
#: Fewest rows for which lanes over rows beat lanes over channels, measured: where one permute finds what a
#: vector of channels multiplies, by the width of the strips; and where it takes two permutes or a gather, or
#: the rows are pixels of a window wider than one, of which a tile takes few.
FEWEST_ROWS = {1: 40, WIDTH: 24}
FEWEST_ROWS_GATHERED = 12
#: Input channels that one permute chooses from, at every level that has such a permute.
ONE_PERMUTE = 8
#: Output channels are filled up to a multiple of this: the most lanes of a register.
CHANNELS = 16


@dataclass(frozen=True)
class Strips:
    """The weight ``[out, taps, channels]`` in strips of ``width``, with room for ``slots``.

    A block has about ``depth`` inputs: a part of the channels of one tap, or all channels of a few taps.
    """

    out: int
    taps: int
    channels: int
    width: int
    depth: int
    unroll: int
    slots: int

    @property
    def count(self) -> int:
        """Strips, those of padding included."""
        return -(-self.out // CHANNELS) * CHANNELS // self.width

    @property
    def part(self) -> int:
        """Channels of a block, but for the last one of a tap."""
        parts = -(-self.channels // self.depth)
        return min(self.channels, -(-self.channels // parts // CHANNELS) * CHANNELS)

    @property
    def parts(self) -> int:
        """Blocks that the channels of one tap are cut into; none has fewer than 16 channels for itself."""
        return self.channels // self.part + (self.channels % self.part >= CHANNELS)

    @property
    def rest(self) -> int:
        """Channels of the last block of a tap."""
        return self.channels - (self.parts - 1) * self.part

    @property
    def most_inputs(self) -> int:
        """Inputs of the largest block."""
        return self.block_taps * self.channels if self.parts == 1 else max(self.part, self.rest)

    @property
    def block_taps(self) -> int:
        """Taps of a block; the last block may have fewer."""
        return max(1, min(self.taps, self.depth // self.channels))

    @property
    def blocks(self) -> int:
        return -(-self.taps // self.block_taps) * self.parts

    def first(self, block):
        """``(tap, channel)`` where a block starts; ``block`` is an int or an index expression."""
        if self.parts == 1:
            return block * self.block_taps, 0
        return block // self.parts, block % self.parts * self.part

    def args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of the arrays."""
        runs = self.blocks * self.count
        return [((self.slots, self.width), "float32"), ((self.slots,), "int16"), ((runs + 1,), "int32")]

    def pack(self, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """``weight [out, taps, channels]``; ``kept`` (bool, same shape) says what is stored, else non-zeros.

        Raises ValueError where there is more to store than ``slots``.
        """
        mask = self._strips(weight != 0 if kept is None else kept).any(axis=1)
        runs = [self._run(mask, block) for block in range(self.blocks)]
        lengths = np.concatenate([_filled(mask.sum(1), self.unroll) for mask in runs])
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        if start[-1] > self.slots:
            raise ValueError(
                f"Strips.pack: required room for {start[-1]} slots, found {self.slots}; "
                "make the strips from this weight"
            )
        values = np.zeros((self.slots, self.width), np.float32)
        position = np.zeros(self.slots, np.int16)
        columns = self._strips(weight)
        for block, used in enumerate(runs):
            strip, inside = np.nonzero(used)
            nth = np.arange(len(strip)) - np.searchsorted(strip, strip)
            slot = start[block * self.count + strip] + nth
            values[slot] = columns[strip, :, inside + self._offset(block)]
            position[slot] = inside
        return values, position, start

    def unpack(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """The dense weight ``[out, taps, channels]``."""
        values, position, start = arrays
        run = np.repeat(np.arange(len(start) - 1), np.diff(start))
        block, strip = run // self.count, run % self.count
        dense = np.zeros((self.count, self.width, self.taps * self.channels), np.float32)
        offset = np.array([self._offset(b) for b in range(self.blocks)])
        used = start[-1]
        # Added, not stored: what fills a run up is a zero at its block's first input.
        np.add.at(dense, (strip, slice(None), offset[block] + position[:used]), values[:used])
        return dense.reshape(-1, self.taps, self.channels)[: self.out]

    def _strips(self, array: np.ndarray) -> np.ndarray:
        """``[strips, width, taps * channels]``, padded with zeros."""
        flat = np.asarray(array).reshape(self.out, -1)
        padded = np.zeros((self.count * self.width, flat.shape[1]), flat.dtype)
        padded[: self.out] = flat
        return padded.reshape(self.count, self.width, -1)

    def _offset(self, block: int) -> int:
        tap, channel = self.first(block)
        return tap * self.channels + channel

    def _run(self, mask: np.ndarray, block: int) -> np.ndarray:
        """The part of ``mask [strips, taps * channels]`` that lies in ``block``."""
        tap, channel = self.first(block)
        end = min(tap + self.block_taps, self.taps) * self.channels
        if self.parts > 1 and channel + self.rest < self.channels:
            end = self._offset(block) + self.part
        return mask[:, self._offset(block) : end]


def strips_of(
    pattern: Pattern, out: int, taps: int, channels: int, rows: int, permute: bool = True
) -> Strips | None:
    """The strips of a weight ``[out, taps, channels]`` applied to ``rows`` rows; None where panels win.

    ``permute``: whether the CPUs that it is for have one, see ``target.Cpu``.

    Strips of one channel read an activation for every multiply-add, so their block of activations should stay
    in the first-level cache; wider ones live off the second.
    """
    if pattern.dense or (pattern.block % PANEL == 0 and not pattern.scattered):
        return None
    width = WIDTH if pattern.block % WIDTH == 0 else 1
    if not pattern.scattered:
        permuted = ONE_PERMUTE % pattern.m == 0 and channels >= WINDOW and taps == 1
        # Without a permute every lane loads its own activation, which is never faster.
        if permute and rows < (FEWEST_ROWS[width] if permuted else FEWEST_ROWS_GATHERED):
            return None
    if width > 1:
        depth, unroll = 512, 1
    elif rows <= 32:
        depth, unroll = 512, 4
    elif rows <= 64 or pattern.n * 3 < pattern.m:
        depth, unroll = 128, 2
    else:
        depth, unroll = 64, 2
    sized, stored = Strips(out, taps, channels, width, depth, unroll, 0), -(-out // width)
    if pattern.scattered:
        kept = -(-stored * taps * channels * pattern.n // pattern.m)
    else:
        kept = stored * taps * pattern.kept_inputs(channels)
    return replace(sized, slots=kept + stored * sized.blocks * (unroll - 1))


def _filled(lengths: np.ndarray, unroll: int) -> np.ndarray:
    return -(-lengths // unroll) * unroll
