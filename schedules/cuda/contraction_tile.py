"""How a float32 contraction is cut for the ordinary cores of a GPU: tiles, and their shared memory."""

import dataclasses
import math
from dataclasses import dataclass

from sparsec.schedules.contraction import Conv, Gemm
from sparsec.schedules.layout import PANEL, WINDOW, Pattern

#: Channels of a thread, which share their kept inputs in a shared form; threads of a warp side by side.
CHANNELS, SIDE = 8, 8
#: Threads of a warp below each other.
DOWN = 4


@dataclass(frozen=True)
class Tile:
    """What one block of threads computes, and how its warps share it.

    A thread has ``height`` rows of 8 channels, a warp 4 x 8 threads; ``warps_r`` x ``warps_c`` warps lie
    side by side, ``warps_k`` take turns along k, and their sums are added at the end.
    """

    height: int
    warps_r: int
    warps_c: int
    warps_k: int
    stages: int

    @property
    def rows(self) -> int:
        return self.height * DOWN * self.warps_r

    @property
    def channels(self) -> int:
        return CHANNELS * SIDE * self.warps_c

    @property
    def threads(self) -> int:
        return 32 * self.warps_r * self.warps_c * self.warps_k


#: By the most rows that they are for.
TILES = (
    (4, Tile(height=1, warps_r=1, warps_c=1, warps_k=4, stages=3)),
    (16, Tile(height=4, warps_r=1, warps_c=1, warps_k=4, stages=3)),
    (512, Tile(height=8, warps_r=2, warps_c=1, warps_k=2, stages=3)),
    (1 << 62, Tile(height=8, warps_r=4, warps_c=2, warps_k=1, stages=3)),
)


@dataclass(frozen=True)
class Depth:
    """How the reduction is cut: ``rounds`` chunks of ``inputs`` channels, of which ``slots`` are stored.

    A chunk belongs to one tap; its last one may be filled with zeros.
    """

    taps: int
    channels: int
    inputs: int
    slots: int

    @property
    def chunks(self) -> int:
        return -(-self.channels // self.inputs)

    @property
    def rounds(self) -> int:
        return self.taps * self.chunks

    @staticmethod
    def of(pattern: Pattern, taps: int, channels: int) -> "Depth | str":
        """The cut of a panel form; the reason where there is none."""
        form = pattern.form(channels)
        if form == "dense":
            return Depth(taps, channels, 16, 16)
        inputs, slots = (WINDOW, pattern.window_slots) if form == "lanes" else (pattern.m, pattern.n)
        if channels % inputs:
            return f"{channels} input channels, which are no multiple of {inputs}"
        # 16 stored slots, or what up to 64 inputs keep: more would take the shared memory.
        groups = max(1, min(16 // slots, 64 // inputs))
        return Depth(taps, channels, groups * inputs, groups * slots)


@dataclass(frozen=True)
class Words:
    """Shared memory of a tile, in words: for each turn along k inputs ``[inputs, line]``, then weights."""

    line: int
    weights: int
    turn: int
    stage: int
    total: int

    @staticmethod
    def of(tile: Tile, depth: Depth) -> "Words":
        # Four more, so that rows of different inputs start in different banks.
        line = tile.rows + 4
        weights = depth.inputs * line
        turn = weights + depth.slots * tile.channels
        stage = turn * tile.warps_k
        sums = tile.warps_k * tile.rows * sums_line(tile) if tile.warps_k > 1 else 0
        return Words(line, weights, turn, stage, max(stage * tile.stages, sums))


def sums_line(tile: Tile) -> int:
    return tile.channels + 4


@dataclass(frozen=True)
class Layer:
    """What the kernel must know of a ``Gemm`` or ``Conv``: ``groups`` products of ``own`` channels each."""

    rows: int
    lead: tuple[int, ...]
    taps: tuple[int, ...]
    depth: Depth
    groups: int
    own: int
    panels: int
    pattern: Pattern

    @property
    def channels(self) -> int:
        return self.depth.channels

    @property
    def share(self) -> int:
        """Channels of a thread that multiply the same inputs, of its eight."""
        dense = self.pattern.form(self.depth.channels) == "dense"
        return CHANNELS if dense else math.gcd(self.pattern.block, CHANNELS)

    @staticmethod
    def of(spec: Gemm | Conv) -> "Layer | str":
        """The layer of a spec; the reason where this kernel is not for it."""
        if getattr(spec, "strips", None):
            return "weights in strips, which are for lanes over rows"
        if isinstance(spec, Gemm):
            pattern, taps, channels, groups, own = spec.pattern, (), spec.k, 1, spec.n
        elif isinstance(spec, Conv):
            pattern, taps, channels, groups = spec.packed, (spec.k_h, spec.k_w), spec.depth, spec.groups
            own = spec.out_c // groups
        else:
            return f"a {type(spec).__name__}"
        depth = Depth.of(pattern, math.prod(taps), channels)
        if isinstance(depth, str):
            return depth
        lead = spec.y_shape[:-1]
        return Layer(math.prod(lead), lead, taps, depth, groups, own, -(-own // PANEL), pattern)


def tile_for(layer: Layer, shared: int) -> Tile | None:
    """The tile for ``layer`` in ``shared`` bytes of shared memory; None where none fits."""
    tile = next(tile for most, tile in TILES if layer.rows <= most)
    while Words.of(tile, layer.depth).total * 4 > shared:
        if tile.stages == 2:
            return None
        tile = dataclasses.replace(tile, stages=tile.stages - 1)
    return tile
