"""The kernel of products with quantised weights: a block of channels by a few rows, group after group.

Within a group everything is integer: a vector of packed words is taken apart by shifts and masks, and its
parts are multiplied with broadcast words of activations.  With VNNI these are four upper bytes, then four
lower ones, with sums of their own; else they are pairs of 16 bits.  After a group the sums are scaled and
added to float32 ones, which matter only there and may leave the registers meanwhile.  A block is one stream
of memory, fetched ``AHEAD`` bytes before its use.

Weights are stored without a sign, so a group's sums are too large by its zero points times the sum of its
activations: of all, or of those that the pattern keeps, which are added up beside the products.
"""

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from sparsec.schedules import pairs, quads, tir, vector
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_plan import TASK_ROWS, TASKS
from sparsec.schedules.contraction_tile import Tile, tile_loops
from sparsec.schedules.elements import widened
from sparsec.schedules.target import Cpu
from sparsec.schedules.weight_quant import OFFSET, PER_WORD, QuantGemm

#: What memory delivers during its latency, and more: prefetches of hardware stop at a page.
AHEAD = 2048
LINE_BYTES = 64
#: Rows of a tile: with two, the sums of a whole block are in registers together. With more, a block has two
#: parts, whose loops over a short group compilers unroll and mix, and then nothing stays in registers.
ROWS = 2


def quant_body(cpu: Cpu, spec: QuantGemm, operands: dict[str, tir.Buffer], epilogue: Epilogue) -> tir.Stmt:
    """Y of ``spec`` from its ``operands``, by their names in the definition."""
    rows = math.prod(spec.lead)
    parts = max(1, min(-(-TASKS // spec.blocks), -(-rows // TASK_ROWS)))

    def blocks(first: int, count: int, columns: int) -> tir.Stmt:
        def task(t):
            block = tirx.floordiv(t, tir.i64(parts)) + tir.i64(first)
            share = (tirx.floormod(t, tir.i64(parts)), parts) if parts > 1 else (0, 1)

            def tile(row, height: int) -> tir.Stmt:
                return _Block(cpu, spec, operands, block, row, height).statements(epilogue, columns)

            return tile_loops(rows, ROWS, tile, share)

        return tir.loop("task", count * parts, task, "PARALLEL" if count * parts > 1 else "SERIAL")

    whole, rest = divmod(spec.n, spec.width)
    code = [blocks(0, whole, spec.width)] if whole else []
    return tir.seq([*code, *([blocks(whole, 1, rest)] if rest else [])])


@dataclass(frozen=True)
class _Part:
    """What is multiplied at once: the values from bit ``shift`` on, each ``distance`` bits behind the last.

    Their slots are ``slots``; ``place`` is where X has the first of them, in a dense weight.
    """

    shift: int
    distance: int
    slots: tuple[int, ...]
    place: int

    def of(self, word, bits: int, lanes: int):
        mask = sum((1 << bits) - 1 << at for at in range(0, 32, self.distance))
        word = word >> tir.broadcast(tir.i32(self.shift), lanes) if self.shift else word
        return word & tir.broadcast(tir.i32(mask), lanes) if bits < self.distance else word


def _parts(bits: int, quads: bool) -> list[_Part]:
    halves = range(0, 8, bits)
    if quads:
        return [_Part(half, 8, tuple(range(half, half + 4)), half) for half in halves]
    return [
        _Part(half + 8 * byte, 16, (half + byte, half + byte + 2), half + 2 * byte)
        for half in halves
        for byte in range(2)
    ]


class _Block:
    """``height`` rows from ``row`` on by one ``block`` of channels."""

    def __init__(self, cpu: Cpu, spec: QuantGemm, operands: dict[str, tir.Buffer], block, row, height: int):
        self.cpu, self.spec, self.operands = cpu, spec, operands
        self.block, self.row, self.height = block, row, height
        self.lanes = min(cpu.lanes, spec.width)
        self.tile = Tile(self.lanes, height, spec.width)
        self.words = spec.per_group // PER_WORD[spec.bits]
        self.quads = quads.dots(cpu)
        #: By how much less what is multiplied of weights is, where only signed bytes are: 4 bits are signed.
        self.less = 1 << quads.SIGNED_BITS if quads.signed(cpu) and spec.bits == 8 else 0
        # Vectors whose integer sums are in registers together, beside what is taken apart and broadcast.
        vectors = spec.width // self.lanes
        fit = max(1, (cpu.registers - 6) // (height * (1 + self.quads)))
        self.together = next(v for v in range(vectors, 0, -1) if vectors % v == 0 and v <= fit)

    def statements(self, epilogue: Epilogue, columns: int) -> tir.Stmt:
        first = self.block * tir.i64(self.spec.width)

        def index(r, column):
            return [*tir.unflatten(self.row + r, self.spec.lead), first + column]

        return tir.seq(
            [
                *self.tile.allocate(),
                *self.tile.zero(),
                tir.loop("g", self.spec.groups.count, self._group),
                *self.tile.finish(epilogue, index, columns),
            ]
        )

    def _group(self, g) -> tir.Stmt:
        vectors = self.tile.vectors()
        stmts = [self._fetch("S", g, AHEAD // (self.words * 4 * self.spec.width))]
        for start in range(0, len(vectors), self.together):
            stmts.append(self._sums(g, vectors[start : start + self.together], start == 0))
        return tir.seq(stmts)

    def _sums(self, g, vectors, first: bool) -> tir.Stmt:
        """The sums of one group for the channels of ``vectors``, added to the tile's."""
        sums = [[self._stacks(f"sum{r}") for _ in vectors] for r in range(self.height)]
        lists = self._lists(vectors)
        counted = (
            []
            if self.spec.pattern.dense
            else [[self._stacks(f"count{r}") for _ in lists] for r in range(self.height)]
        )
        every = [buffer for row in sums for column in row for buffer in column]
        every += [buffer for row in counted for list_ in row for buffer in list_]

        def word(j):
            at = g * tir.i64(self.words) + j
            ahead = [self._fetch("W", at, AHEAD // (4 * self.spec.width))] if first else []
            return tir.seq([*ahead, *self._products(at, lists, vectors, sums, counted)])

        return tir.seq(
            [
                *tir.alloc(every),
                *(self._store(buffer, tir.broadcast(tir.i32(0), self.lanes)) for buffer in every),
                tir.loop("k", self.words, word),
                *self._scaled(g, lists, vectors, sums, counted),
            ]
        )

    def _products(self, at, lists, vectors, sums, counted) -> list[tir.Stmt]:
        """The products of the words of weights ``at``, added to ``sums``."""
        bits, stmts = self.spec.bits, []

        def multiply_add(total, x, w):
            # Of four products the first operand is the one without a sign.
            return quads.multiply_weights(self.cpu, total, w, x) if self.quads else pairs.madd(total, x, w)

        def bind(name, value):
            stmts.append(tirx.Bind(variable := tirx.Var(name, value.ty), value))
            return variable

        packed = [
            bind("w", tir.vector_load(self.operands["W"], self.block, at, tir.i64(v), lanes=self.lanes))
            for v in vectors
        ]
        for part in _parts(bits, self.quads):
            for l, (which, columns) in enumerate(lists):
                x = [
                    [
                        self._spread(bind("x", word))
                        for word in self._activations(r, at * tir.i64(PER_WORD[bits]), part, which)
                    ]
                    for r in range(self.height)
                ]
                for r, row in enumerate(counted):
                    ones = tir.broadcast(tir.i32(0x01010101 if self.quads else 0x00010001), self.lanes)
                    for buffer, value in zip(row[l], x[r], strict=True):
                        stmts.append(self._store(buffer, multiply_add(self._load(buffer), value, ones)))
                for i in columns:
                    w = part.of(packed[i], bits, self.lanes)
                    w = bind("q", w ^ tir.broadcast(tir.i32(quads.signs()), self.lanes) if self.less else w)
                    for r in range(self.height):
                        for buffer, value in zip(sums[r][i], x[r], strict=True):
                            stmts.append(self._store(buffer, multiply_add(self._load(buffer), value, w)))
        return stmts

    def _lists(self, vectors) -> list[tuple]:
        """``(row of the index, positions in vectors)`` for vectors that read the same input channels."""
        pattern, width = self.spec.pattern, self.spec.width
        if pattern.dense:
            return [(None, range(len(vectors)))]
        shared = math.gcd(pattern.block, width)
        first = self.block * tir.i64(width)
        return [
            (
                tirx.floordiv(first + tir.i64(start), tir.i64(pattern.block)),
                [i for i, v in enumerate(vectors) if v // shared * shared == start],
            )
            for start in sorted({v // shared * shared for v in vectors})
        ]

    def _activations(self, r: int, slot, part: _Part, which) -> list:
        """What meets ``part`` of the word that begins with ``slot``: a pair, or upper and lower bytes."""
        x, row = self.operands["X"], self._row(r)

        def word(half: int, at):
            address = tirx.address_of(tir.load(x, *row, tir.i64(half), at))
            return tirx.call_extern("int32", "sparsec_word_16", address)

        lower = tir.i64(self.spec.groups.depth // 2)
        if which is None and self.quads:
            at = tirx.floordiv(slot + tir.i64(part.place), tir.i64(2))
            return [word(1, at), word(1, at + lower)]
        if which is None:
            return [word(0, slot + tir.i64(part.place))]
        first = slot + tir.i64(part.slots[0] // 4 * 4)
        start = self.spec.start(first)
        choice = tir.load(self.operands["I"], which, tirx.floordiv(first, tir.i64(4)))
        if self.quads:
            half = tirx.floordiv(start, tir.i64(2))
            places = (tirx.address_of(tir.load(x, *row, tir.i64(1), at)) for at in (half, half + lower))
            return [pairs.pick(place, tir.broadcast(choice, self.lanes)) for place in places]
        inside = ((choice >> tir.i32(8 * (s % 4))) & tir.i32(15) for s in part.slots)
        low, high = (
            tir.load(x, *row, tir.i64(0), start + at.astype("int64")).astype("int32") for at in inside
        )
        return [(low & tir.i32(0xFFFF)) | high << tir.i32(16)]

    def _row(self, r: int) -> list:
        return tir.unflatten(self.row + tir.i64(r), self.spec.lead)

    def _scaled(self, g, lists, vectors, sums, counted) -> list[tir.Stmt]:
        """Adds the ``sums`` of a group to the tile, less what its zero points add, on its scales."""
        stmts, buffers, lanes = [], self.operands, self.lanes

        def seen(part: int, r: int):
            return tir.load(buffers["XS"], *self._row(r), tir.i64(part), g)

        for i, v in enumerate(vectors):
            at = [self.block, g, tir.i64(v)]
            scale = tir.vector_load(buffers["S"], *at, lanes=lanes)
            scale = widened(scale, lanes) if self.spec.scale == "uint16" else scale
            stmts.append(tirx.Bind(name := tirx.Var(f"s{v}", scale.ty), scale))
            for r in range(self.height):
                total = self._total(sums[r][i])
                if self.spec.zeros:
                    zero = tir.vector_load(buffers["Z"], *at, lanes=lanes).astype(f"int32x{lanes}")
                    zero = zero - tir.broadcast(tir.i32(self.less), lanes) if self.less else zero
                else:
                    zero = tir.broadcast(tir.i32(OFFSET[self.spec.bits] - self.less), lanes)
                if counted:
                    every = self._total(
                        next(row for row, (_, at) in zip(counted[r], lists, strict=True) if i in at)
                    )
                else:
                    every = tir.broadcast(seen(1, r).astype("int32"), lanes)
                total = total - zero * every
                old = tir.vector_load(self.tile.acc[r], tir.i64(v), lanes=lanes)
                factor = name * tir.broadcast(seen(0, r), lanes)
                new = old + total.astype(f"float32x{lanes}") * factor
                stmts.append(tir.vector_store(self.tile.acc[r], new, tir.i64(v), lanes=lanes))
        return stmts

    def _spread(self, word):
        return tir.broadcast(word, self.lanes) if tir.lanes_of(word) == 1 else word

    def _stacks(self, name: str) -> list[tir.Buffer]:
        """The sum of 16-bit products, or those of upper and of lower bytes."""
        return [vector.stack(name, self.lanes, "int32") for _ in range(1 + self.quads)]

    def _total(self, buffers: list[tir.Buffer]):
        total = self._load(buffers[-1])
        if self.quads:
            total = total + (self._load(buffers[0]) << tir.broadcast(tir.i32(8), self.lanes))
        return total

    def _load(self, buffer):
        return tir.vector_load(buffer, tir.i64(0), lanes=self.lanes)

    def _store(self, buffer, value) -> tir.Stmt:
        return tir.vector_store(buffer, value, tir.i64(0), lanes=self.lanes)

    def _fetch(self, name: str, row, ahead: int) -> tir.Stmt:
        """Asks for what lies ``ahead`` rows behind ``row`` of the block; beyond the end that is harmless."""
        buffer = self.operands[name]
        step = LINE_BYTES // np.dtype(tir.dtype_of(buffer)).itemsize
        return tir.seq(
            tir.prefetch(buffer, self.block, row + tir.i64(ahead), tir.i64(column))
            for column in range(0, self.spec.width, step)
        )
