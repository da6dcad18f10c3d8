"""The kernel of float32 contractions: Gemm and Conv, dense or with zeros of any N:M pattern.

Inputs are copied to shared memory one by one, so that strides, borders and odd shapes cost no more than a
condition: ``[channel, row]``, which a thread reads as vectors of rows.  Of a sparse weight the stored
values are copied alone; the inputs that they want are picked in shared memory, once for the channels of a
thread that share them.  Products are exact fused multiply-adds.
"""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction import Conv, find_anchor
from sparsec.schedules.contraction_epilogue import Epilogue, extract
from sparsec.schedules.contraction_pixels import pixel
from sparsec.schedules.contraction_rule import operands
from sparsec.schedules.contraction_spec import stored_channel
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.contraction_tile import CHANNELS, SIDE, Layer, Tile, Words, sums_line, tile_for
from sparsec.schedules.cuda.results import Staged, deal, every, write
from sparsec.schedules.cuda.target import WARP, Gpu
from sparsec.schedules.cuda.tile import tile_of
from sparsec.schedules.layout import PANEL

#: Slots that are written out one after another; a loop goes over the rest.
_UNROLL = 4


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The kernel of a function with a ``Gemm`` or ``Conv``, and its tail fused; None for other functions."""
    found = find_anchor(func)
    layer = found and Layer.of(found[0])
    if not isinstance(layer, Layer) or 0 in (layer.rows, layer.own, layer.depth.channels):
        return None
    spec, block = found
    x, weights = operands(spec, block)
    epilogue = extract(func, block)
    if isinstance(epilogue, str) or not all(any(b.same_as(p) for p in func.params) for b in (x, *weights)):
        return None
    tile = tile_of(func, Tile) or tile_for(layer, gpu.shared)
    if tile is None:
        return None
    body = _Kernel(spec, layer, tile, x, weights, epilogue).body()
    made = ptx.narrow(tirx.PrimFunc(func.params, body, func.ret_type, func.attrs))
    return made.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


class _Kernel:
    """One kernel: ``body`` makes it, the rest are its parts in the order in which they run."""

    def __init__(self, spec, layer: Layer, tile: Tile, x, weights: list[tir.Buffer], epilogue: Epilogue):
        self.spec, self.layer, self.tile, self.x, self.epilogue = spec, layer, tile, x, epilogue
        self.weights, self.index = weights[0], weights[1] if len(weights) > 1 else None
        self.depth, self.words = layer.depth, Words.of(tile, layer.depth)
        self.rounds = -(-self.depth.rounds // tile.warps_k)
        self.shared = ptx.shared(self.words.total, "float32")
        self.sums = ptx.registers("sums", tile.height * CHANNELS, "float32")
        self.inputs = ptx.registers("inputs", tile.height, "float32")
        self.values = ptx.registers("values", CHANNELS, "float32")

    def body(self) -> tir.Stmt:
        layer, tile = self.layer, self.tile
        blocks = -(-layer.panels * PANEL // tile.channels), -(-layer.rows // tile.rows), layer.groups
        return ptx.grid(blocks if layer.groups > 1 else blocks[:2], tile.threads, self._block)

    def _block(self, block_c, block_r, *rest) -> tir.Stmt:
        tile = self.tile
        *group, thread = rest
        self.group = group[0] if group else tir.i64(0)
        self.thread, lane, warp = thread, thread % WARP, thread // WARP
        self.first_panel, self.first_row = block_c * (tile.channels // PANEL), block_r * tile.rows
        self.turn = warp // (tile.warps_r * tile.warps_c)
        self.row = (warp // tile.warps_c % tile.warps_r * 4 + lane // SIDE) * tile.height
        self.channel = (warp % tile.warps_c * SIDE + lane % SIDE) * CHANNELS
        return tir.seq(
            [
                *tir.alloc([self.shared, self.sums, self.inputs, self.values]),
                ptx.zero(self.sums),
                *ptx.pipeline(self.rounds, tile.stages, self._fetch, self._products),
                *self._finish(),
            ]
        )

    def _place(self, step, turn):
        """Tap and chunk of a warp's turn in a round; and whether there is one, None for always."""
        at = step * self.tile.warps_k + turn
        real = at < self.depth.rounds if self.depth.rounds % self.tile.warps_k else None
        return at // self.depth.chunks, at % self.depth.chunks, real

    def _taps(self, tap) -> list:
        return tir.unflatten(tap, self.layer.taps) if self.layer.taps else []

    # ---- copies -----------------------------------------------------------------------------------------

    def _fetch(self, step, stage) -> tir.Stmt:
        start = stage * self.words.stage
        return tir.seq([self._fetch_inputs(step, start), self._fetch_weights(step, start)])

    def _fetch_inputs(self, step, start) -> tir.Stmt:
        layer, depth, tile = self.layer, self.depth, self.tile

        def piece(i):
            inside, turn = i % depth.inputs, i // depth.inputs % tile.warps_k
            row = i // (depth.inputs * tile.warps_k)
            tap, chunk, real = self._place(step, turn)
            channel = chunk * depth.inputs + inside
            there = self.first_row + row
            coordinates, within = self._source(tirx.min(there, tir.i64(layer.rows - 1)), tap)
            valid = every(
                real,
                there < layer.rows if layer.rows % tile.rows else None,
                channel < depth.channels if depth.channels % depth.inputs else None,
                within,
            )
            last = self.group * depth.channels + tirx.min(channel, tir.i64(depth.channels - 1))
            word = start + turn * self.words.turn + inside * self.words.line + row
            return ptx.copy_async(self.shared, word, self.x, [*coordinates, last], valid, 4)

        return deal(tile.rows * tile.warps_k * depth.inputs, tile.threads, self.thread, piece)

    def _source(self, row, tap) -> tuple[list, tir.Expr | None]:
        """The coordinates in X of an output row, but for the channel; whether the tap lies inside."""
        at = tir.unflatten(row, self.layer.lead)
        if not isinstance(self.spec, Conv) or self.spec.pointwise:
            return at, None
        p, q = self._taps(tirx.min(tap, tir.i64(self.depth.taps - 1)))
        return pixel(self.spec, *at, p, q)

    def _fetch_weights(self, step, start) -> tir.Stmt:
        layer, depth, tile = self.layer, self.depth, self.tile
        kept, panels = layer.pattern.kept(depth.channels), tile.channels // PANEL

        def piece(i):
            lane, inside = i % (PANEL // 4) * 4, i // (PANEL // 4) % depth.slots
            panel, turn = i // (PANEL // 4 * depth.slots) % panels, i // (PANEL // 4 * depth.slots * panels)
            tap, chunk, real = self._place(step, turn)
            slot, there = chunk * depth.slots + inside, self.first_panel + panel
            valid = every(
                real,
                slot < kept if kept % depth.slots else None,
                there < layer.panels if layer.panels % panels else None,
            )
            source = [
                self.group * layer.panels + tirx.min(there, tir.i64(layer.panels - 1)),
                *self._taps(tirx.min(tap, tir.i64(depth.taps - 1))),
                tirx.min(slot, tir.i64(kept - 1)),
                lane,
            ]
            word = start + turn * self.words.turn + self.words.weights + inside * tile.channels
            return ptx.copy_async(self.shared, word + panel * PANEL + lane, self.weights, source, valid)

        count = PANEL // 4 * depth.slots * panels * tile.warps_k
        return deal(count, tile.threads, self.thread, piece)

    # ---- products ---------------------------------------------------------------------------------------

    def _products(self, step, stage) -> tir.Stmt:
        start = stage * self.words.stage + self.turn * self.words.turn
        tap, chunk, _ = self._place(step, self.turn)
        unroll = _UNROLL if self.depth.slots % _UNROLL == 0 else 1

        def some(first):
            return ptx.unrolled("i", unroll, lambda i: self._slot(start, tap, chunk, first * unroll + i))

        return tir.loop("first", self.depth.slots // unroll, some)

    def _slot(self, start, tap, chunk, slot) -> tir.Stmt:
        height, share = self.tile.height, self.layer.share
        values = start + self.words.weights + slot * self.tile.channels + self.channel

        def load(first: int) -> tir.Stmt:
            line = self._input(tap, chunk, slot, first) * self.words.line
            return self._load(self.inputs, start + line + self.row, height)

        def multiply(first: int) -> tir.Stmt:
            def product(r, c):
                value = tir.load(self.inputs, r) * tir.load(self.values, c + first)
                at = r * CHANNELS + (c + first)
                return tirx.BufferStore(self.sums, tir.load(self.sums, at) + value, [at])

            return ptx.unrolled_nest((height, share), product)

        others = (stmt for first in range(share, CHANNELS, share) for stmt in (load(first), multiply(first)))
        return tir.seq([load(0), self._load(self.values, values, CHANNELS), multiply(0), *others])

    def _input(self, tap, chunk, slot, first: int):
        """Which of the chunk's inputs a stored slot multiplies, for the channels from ``first`` on."""
        if self.index is None:
            return slot
        layer, depth = self.layer, self.depth
        kept = layer.pattern.kept(depth.channels)
        panel = self.group * layer.panels + self.first_panel + self.channel // PANEL
        panel = tirx.min(panel, tir.i64(layer.groups * layer.panels - 1))
        taps = self._taps(tirx.min(tap, tir.i64(depth.taps - 1)))
        at = tirx.min(chunk * depth.slots + slot, tir.i64(kept - 1))
        lane, stored = self.channel % PANEL + first, [self.weights, self.index]
        channel = stored_channel(layer.pattern, stored, panel, lane, taps, at, depth.channels)
        # Slots that fill a chunk multiply zeros: any input will do.
        return tirx.max(tirx.min(channel - chunk * depth.inputs, tir.i64(depth.inputs - 1)), tir.i64(0))

    def _load(self, to: tir.Buffer, word, count: int) -> tir.Stmt:
        width = min(4, count)

        def vector(i):
            def lane(v):
                return tirx.BufferStore(to, tir.load(self.shared, word + i * width + v), [i * width + v])

            return tir.vector_loop(width, lane)

        return ptx.unrolled("i", count // width, vector)

    # ---- results ----------------------------------------------------------------------------------------

    def _finish(self) -> list[tir.Stmt]:
        layer, tile = self.layer, self.tile
        vector = 4 if layer.own % 4 == 0 else 1

        def valid(row, channel):
            return every(
                self.first_row + row < layer.rows if layer.rows % tile.rows else None,
                self.first_panel * PANEL + channel < layer.own if layer.own % tile.channels else None,
            )

        def index(row, channel):
            column = self.group * layer.own + self.first_panel * PANEL + channel
            return [*tir.unflatten(self.first_row + row, layer.lead), column]

        if tile.warps_k == 1:

            def run(r, part):
                row, channel = self.row + r, self.channel + part * vector

                def lane(v):
                    value = tir.load(self.sums, r * CHANNELS + part * vector + v)
                    return tir.seq(self.epilogue.stores(index(row, channel + v), value))

                return ptx.when(valid(row, channel), tir.vector_loop(vector, lane))

            return [ptx.unrolled_nest((tile.height, CHANNELS // vector), run)]

        staged = Staged(self.shared, tile.warps_k, tile.rows, tile.channels, sums_line(tile))

        def keep(r, c):
            at = staged.at(self.turn, self.row + r, self.channel + c * 4)

            def lane(v):
                return tirx.BufferStore(self.shared, tir.load(self.sums, r * CHANNELS + c * 4 + v), [at + v])

            return tir.vector_loop(4, lane)

        return [
            ptx.barrier(),
            ptx.unrolled_nest((tile.height, CHANNELS // 4), keep),
            ptx.barrier(),
            write(staged, tile.threads, self.thread, vector, valid, index, self.epilogue),
        ]
