"""How a product with few rows is cut for a GPU: it reads its weight once, and that takes all its time."""

import math
from dataclasses import dataclass

from sparsec.schedules.contraction import Gemm
from sparsec.schedules.layout import PANEL, WINDOW, Pattern

#: The most rows; from there on a weight in shared memory serves more threads than one.
MOST_ROWS = 16
#: Warps of a block, and stored slots that a warp reads side by side: four threads have the channels of one.
WARPS, SIDE = 8, 8
#: Words of shared memory for the inputs of a chunk.
_INPUTS = 8192
#: Blocks that keep the memory of the largest GPUs busy.
_BLOCKS = 256


@dataclass(frozen=True)
class Cut:
    """``rows`` rows of ``k`` inputs times ``n`` channels, whose weight has ``kept`` slots in each panel.

    A block has ``panels`` panels and ``parts`` warps for each; ``ahead`` slots of a thread are loaded before
    the first is used.  Slots come in chunks of ``slots``, whose ``inputs`` lie in shared memory, and a few
    more behind the last chunk.  Blocks that share their panels have ``own`` chunks each, of all ``chunks``.
    """

    rows: int
    k: int
    n: int
    kept: int
    pattern: Pattern
    panels: int
    ahead: int
    inputs: int
    slots: int
    chunks: int
    own: int

    @property
    def parts(self) -> int:
        return WARPS // self.panels

    @property
    def all_panels(self) -> int:
        return ceil(self.n, PANEL)

    @property
    def blocks(self) -> int:
        return ceil(self.all_panels, self.panels)

    @property
    def splits(self) -> int:
        """Blocks that share their panels."""
        return ceil(self.chunks, self.own)

    @property
    def rest(self) -> int:
        """Inputs behind the last chunk: fewer than a group."""
        return self.k % unit(self.pattern, self.k)[0]

    @property
    def line(self) -> int:
        """Words of a row of inputs in shared memory."""
        return ceil(self.inputs + self.rest, 4) * 4

    @property
    def sum_line(self) -> int:
        return self.panels * PANEL + 4

    @property
    def words(self) -> int:
        """Shared memory: the inputs of a chunk, then the sums."""
        return max(self.rows * self.line, self.parts * self.rows * self.sum_line)

    @property
    def channels(self) -> int:
        return self.k

    @property
    def share(self) -> int:
        """Channels of a thread that multiply the same inputs, of its four."""
        return 4 if self.pattern.form(self.k) == "dense" else math.gcd(self.pattern.block, 4)

    @staticmethod
    def of(spec: Gemm) -> "Cut | str":
        """The cut of a ``Gemm``; the reason where this kernel is not for it."""
        rows, kept = math.prod(spec.lead), spec.pattern.kept(spec.k)
        if spec.strips:
            return "weights in strips, which are cut for other blocks of inputs"
        if not 1 <= rows <= MOST_ROWS:
            return f"{rows} rows"
        panels = 1 if rows <= 4 else 2 if rows <= 8 else 4
        group, group_slots = unit(spec.pattern, spec.k)
        groups = max(1, spec.k // group)
        # Enough blocks first, then chunks that fit; each keeps all warps of a block busy for a while.
        wanted = ceil(_BLOCKS, ceil(spec.n, panels * PANEL))
        own_groups = max(ceil(WARPS // panels * SIDE * 4, group_slots), ceil(groups, wanted))
        chunk = max(1, min(groups, own_groups, _INPUTS // rows // group))
        return Cut(
            rows,
            spec.k,
            spec.n,
            kept,
            spec.pattern,
            panels,
            8 if rows <= 2 else 4 if rows <= 8 else 2,
            chunk * group,
            chunk * group_slots,
            ceil(groups, chunk),
            min(ceil(groups, chunk), max(1, own_groups // chunk)),
        )


def unit(pattern: Pattern, channels: int) -> tuple[int, int]:
    """The fewest inputs that have slots of their own, and these slots."""
    match pattern.form(channels):
        case "dense":
            return 4, 4
        case "lanes":
            return WINDOW, pattern.window_slots
        case _:
            return pattern.m, pattern.n


def ceil(a: int, b: int) -> int:
    return -(-a // b)
