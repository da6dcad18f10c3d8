"""How a product on tensor cores is cut: tiles, and their shared memory."""

import dataclasses
from dataclasses import dataclass

from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.tensor_gemm import TensorConv, TensorGemm

#: Words of a block of inputs of one token.
LINE = fragments.BLOCK_BYTES // 4


@dataclass(frozen=True)
class Tile:
    """What one block of threads computes, and how its warps share it.

    ``channels`` x ``tokens`` of the result; its warps are ``warps_c`` x ``warps_t`` of these, and
    ``warps_k`` take turns along k, a block of inputs each, whose sums are added at the end.  ``stages`` are
    in shared memory at once.
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

    ``values``: those of 16 channels and a block of inputs.
    """

    values: int
    metadata: int
    activations: int
    stage: int
    total: int

    @staticmethod
    def of(tile: Tile, sparse: bool) -> "Words":
        values = fragments.steps(sparse) * fragments.LANES * fragments.VALUES
        bands = tile.channels // fragments.ROWS * tile.warps_k
        metadata = bands * values
        activations = metadata + (bands * fragments.LANES if sparse else 0)
        stage = activations + tile.tokens * tile.warps_k * LINE
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


def tile_for(spec: TensorGemm | TensorConv, shared: int) -> Tile:
    """The tile for ``spec`` where a block may have ``shared`` bytes of shared memory."""
    tile = next(tile for most, tile in TILES if spec.rows <= most)
    while Words.of(tile, spec.sparse).total * 4 > shared:
        tile = dataclasses.replace(tile, stages=tile.stages - 1)
    return tile
