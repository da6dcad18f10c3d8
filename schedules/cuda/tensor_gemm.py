"""Products with a constant weight on tensor cores, dense or 2:4: what they compute, and their tiles.

``TensorGemm`` is a spec like those of ``contraction``: half-precision activations and weights, sums and
result in float32.  What follows it, the rounding to half precision first of all, is fused into the kernel.
"""

import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np
import tvm_ffi
from tvm import te, tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_spec import ANNOTATION, anchor, check_weight, placeholder, reduce_axis
from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.ptx import TYPES

#: A copy to shared memory is 16 bytes, which must not cross a row's end.
ALIGNED = 8


@dataclass(frozen=True)
class TensorGemm:
    """``Y[*lead, n] = sum_k X[*lead, k] * W[n, k]`` in float32; X and the constant W are of ``dtype``."""

    lead: tuple[int, ...]
    k: int
    n: int
    sparse: bool = False
    dtype: str = "float16"

    def __post_init__(self):
        if self.k % ALIGNED:
            raise ValueError(f"TensorGemm: required k to be a multiple of {ALIGNED}, found {self.k}; pad it")
        if self.dtype not in TYPES:
            raise ValueError(f"TensorGemm: required one of {', '.join(TYPES)}, found {self.dtype}")

    @property
    def rows(self) -> int:
        return math.prod(self.lead)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.k)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.n)

    def weight_args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each packed array."""
        return fragments.shapes(self.sparse, self.n, self.k, self.dtype)

    def pack(self, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Packs ``weight [n, k]`` of the spec's dtype; ``kept`` marks the kept positions, else non-zeros."""
        check_weight("TensorGemm.pack", weight, (self.n, self.k))
        return fragments.pack(self.sparse, weight, kept)

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled function ``(X, W, [E], Y)``, E being the metadata."""
        x = placeholder(self.x_shape, self.dtype, "X")
        weights = [placeholder(s, d, name) for (s, d), name in zip(self.weight_args(), "WE", strict=False)]
        c = reduce_axis(self.k // 2 if self.sparse else self.k, "c")
        block = fragments.steps(self.sparse) * fragments.COLUMNS

        def value(*i):
            row, column = i[-1] % fragments.ROWS, c.var % fragments.COLUMNS
            step = c.var % block // fragments.COLUMNS
            tile = i[-1] // fragments.ROWS, c.var // block
            lane, at = fragments.place(row, column)
            channel = c.var
            if self.sparse:
                lane_of, bit = fragments.metadata_place(row, step, column)
                index = weights[1][(*tile, lane_of)].astype("int64") >> bit & tir.i64(3)
                channel = c.var // 2 * 4 + index
            stored = weights[0][(*tile, step, lane, at)].astype("float32")
            return te.sum(x[(*i[:-1], channel)].astype("float32") * stored, axis=[c])

        return anchor(self, [x, *weights], self.y_shape, value)


def find_anchor(func: tirx.PrimFunc) -> tuple[TensorGemm, tir.Block] | None:
    """The spec and the block of a ``TensorGemm`` in a function before or after fusion, or None."""
    found: list[tir.Block] = []

    def visit(block):
        if "TensorGemm" in str(block.annotations.get(ANNOTATION, "")):
            found.append(block)

    tvm_ffi.structural_walk(func.body, (tir.Block, visit))
    if len(found) != 1:
        return None
    fields = json.loads(str(found[0].annotations[ANNOTATION]))
    del fields["kind"]
    return TensorGemm(**fields | {"lead": tuple(fields["lead"])}), found[0]


def operands(block: tir.Block) -> tuple[tir.Buffer, list[tir.Buffer]]:
    """X and [W, E] of an anchor's block, read off ``Y = Y + X[..., E[...]] * W[...]``."""
    product = block.body.value.b
    read: list[tir.Buffer] = []
    for factor in (product.b, product.a):
        tvm_ffi.structural_walk(factor, (tir.TensorLoad, lambda node: read.append(node.source)), order="pre")
    return read[1], [read[0], *read[2:]]


@dataclass(frozen=True)
class Tile:
    """What one block of threads computes, and how its warps share it.

    ``channels`` x ``tokens`` of the result; its warps are ``warps_c`` x ``warps_t`` of these, and
    ``warps_k`` take turns along k, a block of 64 each, whose sums are added at the end.  ``stages`` are in
    shared memory at once.
    """

    channels: int
    tokens: int
    warps_c: int
    warps_t: int
    warps_k: int
    stages: int

    def __post_init__(self):
        per_warp = self.channels % (self.warps_c * fragments.ROWS), self.tokens % (self.warps_t * 8)
        if any(per_warp) or self.stages < 2:
            raise ValueError(f"Tile: required whole fragments for each warp and two stages, found {self}")

    @property
    def threads(self) -> int:
        return self.warps_c * self.warps_t * self.warps_k * fragments.LANES

    def words(self, sparse: bool) -> "Words":
        return Words.of(self, sparse)


@dataclass(frozen=True)
class Words:
    """Shared memory of a tile, in words of 4 bytes: a stage holds values, metadata, activations.

    ``values``: those of 16 channels and 64 inputs.
    """

    values: int
    metadata: int
    activations: int
    stage: int
    total: int

    @staticmethod
    def of(tile: Tile, sparse: bool) -> "Words":
        values = fragments.steps(sparse) * fragments.LANES * fragments.VALUES // 2
        bands = tile.channels // fragments.ROWS * tile.warps_k
        metadata = bands * values
        activations = metadata + (bands * fragments.LANES if sparse else 0)
        stage = activations + tile.tokens * tile.warps_k * fragments.BLOCK // 2
        sums = tile.warps_k * tile.tokens * sums_line(tile)
        return Words(values, metadata, activations, stage, max(stage * tile.stages, sums))


def sums_line(tile: Tile) -> int:
    """Words between the sums of two tokens: lanes of a warp then write to 32 different banks."""
    return tile.channels + 4


#: By the most tokens that they are for; 256 threads, or fewer where the tile is small.
TILES = (
    (16, Tile(channels=32, tokens=16, warps_c=1, warps_t=1, warps_k=4, stages=4)),
    (32, Tile(channels=32, tokens=32, warps_c=1, warps_t=1, warps_k=4, stages=3)),
    (64, Tile(channels=64, tokens=64, warps_c=2, warps_t=2, warps_k=1, stages=4)),
    (1024, Tile(channels=128, tokens=64, warps_c=4, warps_t=2, warps_k=1, stages=3)),
    (1 << 31, Tile(channels=128, tokens=128, warps_c=2, warps_t=4, warps_k=1, stages=3)),
)


def tile_for(spec: TensorGemm, shared: int) -> Tile:
    """The tile for ``spec`` where a block may have ``shared`` bytes of shared memory."""
    tile = next(tile for most, tile in TILES if spec.rows <= most)
    while Words.of(tile, spec.sparse).total * 4 > shared:
        tile = dataclasses.replace(tile, stages=tile.stages - 1)
    return tile
