"""What kernels of products on tensor cores are made of: weights are their left operand.

Tokens, or pixels, are the columns of the right one.  Weights lie in fragment order, so a lane reads its own
by one vector load; activations are swizzled and read by ``ldmatrix``.  Both come by asynchronous copies,
``stages - 1`` ahead.  At the end the sums go through shared memory, so that the result is written, and what
the epilogue reads is read, in runs along the channels.
"""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.cuda import fragments, ptx
from sparsec.schedules.cuda.results import Staged, deal, every, write
from sparsec.schedules.cuda.target import WARP
from sparsec.schedules.cuda.tensor_gemm import TensorConv, TensorGemm
from sparsec.schedules.cuda.tensor_tile import LINE, Tile, sums_line


class Kernel:
    """One kernel: ``body`` makes it, the rest are its parts in the order in which they run."""

    def __init__(
        self,
        spec: TensorGemm | TensorConv,
        tile: Tile,
        x: tir.Buffer,
        weights: list[tir.Buffer],
        epilogue: Epilogue,
    ):
        self.spec, self.tile, self.x, self.weights, self.epilogue = spec, tile, x, weights, epilogue
        self.words = tile.words(spec)
        self.bands, self.blocks = tir.shape_of(weights[0])[:2]
        #: Bands of 16 channels and octets of tokens: of the tile, and of a warp.
        self.tile_bands = tile.channels // fragments.ROWS
        self.warp_bands, self.warp_octets = self.tile_bands // tile.warps_c, tile.tokens // tile.warps_t // 8
        self.rounds = -(-self.blocks // tile.warps_k)
        self.shared = ptx.shared(self.words.total, "uint32")
        self.sums = ptx.registers("sums", self.warp_bands * self.warp_octets * 4, "float32")
        self.reserve()

    def reserve(self) -> None:
        """Registers of operands."""
        self.left = ptx.registers("left", self.warp_bands * 4, "uint32")
        self.right = ptx.registers("right", self.warp_octets * 4, "uint32")
        self.metadata = ptx.registers("metadata", self.warp_bands, "uint32")
        self.operands = [self.left, self.right, *([self.metadata] if self.spec.sparse else [])]

    def body(self) -> tir.Stmt:
        blocks = -(-self.spec.n // self.tile.channels), -(-self.spec.rows // self.tile.tokens)
        return ptx.grid(blocks, self.tile.threads, self._block)

    def _block(self, block_c, block_t, thread) -> tir.Stmt:
        tile = self.tile
        self.thread, self.lane, warp = thread, thread % WARP, thread // WARP
        self.first_band, self.first_token = block_c * self.tile_bands, block_t * tile.tokens
        self.warp_band = warp % tile.warps_c * self.warp_bands
        self.warp_octet = warp // tile.warps_c % tile.warps_t * self.warp_octets
        self.warp_k = warp // (tile.warps_c * tile.warps_t)
        return tir.seq(
            [
                *tir.alloc([self.shared, self.sums, *self.operands]),
                ptx.zero(self.sums),
                *ptx.pipeline(self.rounds, tile.stages, self._fetch, self.products),
                *self._finish(),
            ]
        )

    # ---- copies -----------------------------------------------------------------------------------------

    def _fetch(self, step, stage) -> tir.Stmt:
        start = stage * self.words.stage
        pieces = [self._fetch_weights(self.weights[0], step, start, self.words.values)]
        if self.spec.metadata:
            at = start + self.words.metadata
            pieces.append(self._fetch_weights(self.weights[1], step, at, self.spec.metadata))
        pieces.append(self._fetch_activations(step, start + self.words.activations))
        return tir.seq(pieces)

    def _fetch_weights(self, source: tir.Buffer, step, start, words: int) -> tir.Stmt:
        """``words`` of each band and each block of inputs."""
        turns, pieces = self.tile.warps_k, words // 4
        inside = tir.shape_of(source)[2:]

        def piece(i):
            band = self.first_band + i // (pieces * turns)
            block = step * turns + i // pieces % turns
            index = tir.unflatten(i % pieces * 4, inside)
            valid = every(
                band < self.bands if self.bands % self.tile_bands else None,
                block < self.blocks if self.blocks % turns else None,
            )
            at = [tirx.min(band, tir.i64(self.bands - 1)), tirx.min(block, tir.i64(self.blocks - 1))]
            # Metadata must be in order even where the values are zeros: any other will do.
            zeros = valid if source is self.weights[0] else None
            return ptx.copy_async(self.shared, start + i * 4, source, [*at, *index], zeros)

        return deal(self.tile_bands * turns * pieces, self.tile.threads, self.thread, piece)

    def _fetch_activations(self, step, start) -> tir.Stmt:
        """A block of inputs of each token and turn; 16 bytes ``p`` of token ``t`` lie at ``p ^ t % 8``."""
        turns, spec, size = self.tile.warps_k, self.spec, self.spec.copy_bytes
        pieces, inputs = fragments.BLOCK_BYTES // size * turns, size // spec.number.bytes

        def piece(i):
            token, at = i // pieces, i % pieces
            row = self.first_token + token
            column = (step * pieces + at) * inputs
            place = tir.unflatten(tirx.min(row, tir.i64(spec.rows - 1)), spec.lead)
            source, inside = spec.source(place, tirx.min(column, tir.i64(spec.columns - inputs)))
            valid = every(
                row < spec.rows if spec.rows % self.tile.tokens else None,
                column < spec.columns if spec.columns % (pieces * inputs) else None,
                inside,
            )
            # The block's number in the upper bits of ``at`` is not touched.
            word = start + token * (turns * LINE) + _swizzled(at, size, token)
            return ptx.copy_async(self.shared, word, self.x, source, valid, size)

        return deal(self.tile.tokens * pieces, self.tile.threads, self.thread, piece)

    # ---- products ---------------------------------------------------------------------------------------

    def products(self, step, stage) -> tir.Stmt:
        """What the warp does with its block of inputs in ``stage``."""
        start = stage * self.words.stage
        stmts = [self._load_metadata(start)] if self.spec.sparse else []
        for half in range(2):
            stmts.append(self._load_right(start + self.words.activations, half))
            steps = (half,) if self.spec.sparse else (half * 2, half * 2 + 1)
            for part in steps:
                stmts.append(self._load_left(start + part * (fragments.LANES * fragments.VALUES)))
                stmts.append(self._multiply(part))
        return tir.seq(stmts)

    def _load_metadata(self, start) -> tir.Stmt:
        def one(band):
            word = start + self.words.metadata + self.own_band(band) * fragments.LANES + self.lane
            return tirx.BufferStore(self.metadata, tir.load(self.shared, word), [band])

        return ptx.unrolled("band", self.warp_bands, one)

    def _load_right(self, start, half: int) -> tir.Stmt:
        """Half a block of the warp's tokens: for each octet four matrices of 16 bytes each."""

        def one(octet):
            token = (self.warp_octet + octet) * 8 + self.lane % 8
            piece = (self.lane // 8 + half * 4) ^ self.lane % 8
            word = start + self.line(token) + piece * 4
            load = ptx.load_matrices(self.right, octet * 4, self.shared, word)
            if self.spec.number.bytes == 2:
                return load
            return tir.seq([load, *(ptx.round_tf32(self.right, octet * 4 + i) for i in range(4))])

        return ptx.unrolled("octet", self.warp_octets, one)

    def _load_left(self, start) -> tir.Stmt:
        def one(band):
            word = start + self.own_band(band) * self.words.values + self.lane * 4

            def lane(v):
                return tirx.BufferStore(self.left, tir.load(self.shared, word + v), [band * 4 + v])

            return tir.vector_loop(4, lane)

        return ptx.unrolled("band", self.warp_bands, one)

    def line(self, token):
        """Where in the activations of a stage the warp's block of a token begins."""
        return (token * self.tile.warps_k + self.warp_k) * LINE

    def own_band(self, band):
        """Where in a stage: the blocks of a band lie side by side."""
        return (self.warp_band + band) * self.tile.warps_k + self.warp_k

    def _multiply(self, step: int) -> tir.Stmt:
        number = self.spec.number

        def one(band, octet):
            sums, left = (band * self.warp_octets + octet) * 4, band * 4
            if self.spec.sparse:
                metadata = tir.load(self.metadata, band), step
                return ptx.multiply(
                    number, self.sums, sums, self.left, left, self.right, octet * 4, *metadata
                )
            right = octet * 4 + step % 2 * 2
            return ptx.multiply(number, self.sums, sums, self.left, left, self.right, right)

        return ptx.unrolled_nest((self.warp_bands, self.warp_octets), one)

    # ---- results ----------------------------------------------------------------------------------------

    def _finish(self) -> list[tir.Stmt]:
        tile = self.tile
        words, declared = ptx.view(self.shared, "float32")
        staged = Staged(words, tile.warps_k, tile.tokens, tile.channels, sums_line(tile))

        def keep(band, octet, i):
            channel = (self.warp_band + band) * fragments.ROWS + i // 2 * 8 + self.lane // 4
            token = (self.warp_octet + octet) * 8 + self.lane % 4 * 2 + i % 2
            value = tir.load(self.sums, (band * self.warp_octets + octet) * 4 + i)
            return tirx.BufferStore(words, value, [staged.at(self.warp_k, token, channel)])

        def valid(token, channel):
            column = self.first_band * fragments.ROWS + channel
            return every(
                self.first_token + token < self.spec.rows if self.spec.rows % tile.tokens else None,
                column < self.spec.n if self.spec.n % tile.channels else None,
            )

        def index(token, channel):
            row, column = self.first_token + token, self.first_band * fragments.ROWS + channel
            return [*tir.unflatten(row, self.spec.lead), column]

        vector = 4 if self.spec.n % 4 == 0 else 1
        return [
            declared,
            ptx.barrier(),
            ptx.unrolled_nest((self.warp_bands, self.warp_octets, 4), keep),
            ptx.barrier(),
            write(staged, tile.threads, self.thread, vector, valid, index, self.epilogue),
        ]


def _swizzled(at, size: int, token):
    """The word of piece ``at`` of ``size`` bytes: its 16 bytes change places with others of the token."""
    many = 16 // size
    return (at // many ^ token % 8) * 4 + at % many * (size // 4)
