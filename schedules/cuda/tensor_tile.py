"""How a product on tensor cores is cut: tiles, and their shared memory."""

import dataclasses
from dataclasses import dataclass

from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.target import Gpu
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

    def words(self, spec: TensorGemm | TensorConv) -> "Words":
        return Words.of(self, spec)


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
    def of(tile: Tile, spec: TensorGemm | TensorConv) -> "Words":
        values = spec.steps * fragments.LANES * fragments.VALUES
        bands = tile.channels // fragments.ROWS * tile.warps_k
        metadata = bands * values
        activations = metadata + bands * spec.metadata
        stage = activations + tile.tokens * tile.warps_k * LINE
        sums = tile.warps_k * tile.tokens * sums_line(tile)
        return Words(values, metadata, activations, stage, max(stage * tile.stages, sums))


def sums_line(tile: Tile) -> int:
    """Words between the sums of two tokens: lanes of a warp then write to 32 different banks."""
    return tile.channels + 4


#: What there is to choose from, small ones first: 256 threads, or fewer where the tile is small.
TILES = (
    Tile(channels=16, tokens=8, warps_c=1, warps_t=1, warps_k=8, stages=4),
    Tile(channels=32, tokens=16, warps_c=1, warps_t=1, warps_k=4, stages=4),
    Tile(channels=32, tokens=32, warps_c=1, warps_t=1, warps_k=4, stages=3),
    Tile(channels=64, tokens=32, warps_c=2, warps_t=1, warps_k=2, stages=4),
    Tile(channels=64, tokens=64, warps_c=2, warps_t=2, warps_k=1, stages=4),
    Tile(channels=128, tokens=64, warps_c=4, warps_t=2, warps_k=1, stages=3),
    Tile(channels=128, tokens=128, warps_c=2, warps_t=4, warps_k=1, stages=3),
)

#: What a multiprocessor does in a cycle: multiply-adds of 16 bits, bytes from the second-level cache; and the
#: cycles until the first byte comes (A100; Jia et al. 2021, "Dissecting the Ampere GPU Architecture").
_PRODUCTS, _BYTES, _LATENCY = 1024, 47, 600
#: Threads that a multiprocessor has at a time, at least.
_THREADS = 1536


def tile_for(spec: TensorGemm | TensorConv, gpu: Gpu) -> Tile:
    """The tile of the fewest counted cycles, with as many stages as fit each architecture."""
    return min((_fitting(tile, spec, gpu.shared) for tile in TILES), key=lambda t: cycles(spec, t, gpu))


def _fitting(tile: Tile, spec: TensorGemm | TensorConv, shared: int) -> Tile:
    while tile.words(spec).total * 4 > shared:
        tile = dataclasses.replace(tile, stages=tile.stages - 1)
    return tile


def cycles(spec: TensorGemm | TensorConv, tile: Tile, gpu: Gpu) -> float:
    """Of the busiest multiprocessor: its blocks share products and bytes, and each waits for its own."""
    words = tile.words(spec)
    blocks = -(-spec.n // tile.channels) * -(-spec.rows // tile.tokens)
    own = -(-blocks // gpu.oldest.multiprocessors)
    resident = min(gpu.oldest.shared // (words.total * 4), _THREADS // tile.threads)
    turns = -(-own // resident)
    rounds = -(-spec.columns // (spec.number.block * tile.warps_k))
    products = tile.channels * tile.tokens * spec.number.block * tile.warps_k * spec.steps / 4
    fetched = words.activations + min(tile.tokens, spec.rows) * tile.warps_k * LINE
    busy = max(products * spec.number.bytes / 2 / _PRODUCTS, fetched * 4 / _BYTES)
    written = tile.channels * tile.tokens * 4 / _BYTES
    waiting = rounds * _LATENCY / (tile.stages - 1)
    return max(own * (rounds * busy + written), turns * waiting) + turns * _LATENCY
