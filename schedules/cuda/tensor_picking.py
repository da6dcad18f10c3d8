"""Products with a weight whose zeros 16 channels share: lanes pick the inputs that are kept.

A lane reads 16 neighbouring inputs of a token by two vector loads, and makes words of the kept ones by byte
permutes (``picks``).  What is picked once serves all bands that share their zeros.
"""

import math

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.picks import OWN
from sparsec.schedules.cuda.tensor_parts import Kernel

#: Words of the inputs that a lane reads, and of one of its loads.
_READ, _LOAD = OWN // 2, 4


class Picking(Kernel):
    def reserve(self) -> None:
        picks = self.spec.picks
        self.share = math.gcd(picks.share, self.warp_bands)
        self.chosen = picks.words * picks.selectors
        groups = self.warp_bands // self.share
        self.left = ptx.registers("left", self.warp_bands * picks.steps * 4, "uint32")
        self.selectors = ptx.registers("selectors", groups * self.chosen, "uint32")
        self.read = ptx.registers("read", _READ, "uint32")
        self.halves = ptx.registers("halves", picks.among // 4, "uint32")
        self.right = ptx.registers("right", picks.words, "uint32")
        self.operands = [self.left, self.selectors, self.read, self.halves, self.right]

    def products(self, step, stage) -> tir.Stmt:
        start, steps = stage * self.words.stage, self.spec.steps
        groups = self.warp_bands // self.share

        def octet(number):
            def group(index):
                picked = ptx.unrolled("word", self.spec.picks.words, lambda word: self._pick(index, word))
                bands = ptx.unrolled_nest(
                    (self.share, steps), lambda b, s: multiply(index * self.share + b, s)
                )
                return tir.seq([picked, bands])

            def multiply(band, s):
                sums, left = (band * self.warp_octets + number) * 4, (band * steps + s) * 4
                return ptx.multiply(self.spec.number, self.sums, sums, self.left, left, self.right, s * 2)

            read = self._read(start + self.words.activations, number)
            return tir.seq([read, ptx.unrolled("group", groups, group)])

        return tir.seq(
            [
                self._load_selectors(start + self.words.metadata),
                ptx.unrolled_nest((self.warp_bands, steps), lambda b, s: self._load_values(start, b, s)),
                ptx.unrolled("octet", self.warp_octets, octet),
            ]
        )

    def _load_selectors(self, start) -> tir.Stmt:
        """Those of the lane, of the first band of each group."""

        def one(group, i):
            word = start + self.own_band(group * self.share) * self.spec.metadata + i * 4 + self.lane % 4
            return tirx.BufferStore(self.selectors, tir.load(self.shared, word), [group * self.chosen + i])

        return ptx.unrolled_nest((self.warp_bands // self.share, self.chosen), one)

    def _load_values(self, start, band, step) -> tir.Stmt:
        first = self.words.values // self.spec.steps
        word = start + self.own_band(band) * self.words.values + step * first + self.lane * 4
        return self._load(self.left, (band * self.spec.steps + step) * 4, word)

    def _read(self, start, octet) -> tir.Stmt:
        """The lane's inputs of its token of an octet: two of the swizzled pieces of 16 bytes."""
        token = (self.warp_octet + octet) * 8 + self.lane // 4
        line = start + self.line(token)

        def piece(half):
            return self._load(self.read, half * _LOAD, line + (self.lane % 4 * 2 + half ^ token % 8) * _LOAD)

        return ptx.unrolled("half", _READ // _LOAD, piece)

    def _load(self, to: tir.Buffer, at, word) -> tir.Stmt:
        def lane(v):
            return tirx.BufferStore(to, tir.load(self.shared, word + v), [at + v])

        return tir.vector_loop(4, lane)

    def _pick(self, group, word) -> tir.Stmt:
        """Word ``word`` of the right operand: among four neighbours, then two fours, then two eights."""
        picks = self.spec.picks
        first = word * 2 // (picks.kept // 2) * 4 if picks.among == 8 else tir.i64(0)
        at = group * self.chosen + word * picks.selectors
        selector, second = (tir.load(self.selectors, at + i) for i in (0, picks.selectors - 1))
        fours = [(self.read, first + i * 2, self.read, first + i * 2 + 1) for i in range(picks.among // 4)]
        stmts = [ptx.permute_bytes(self.halves, tir.i64(i), *four, selector) for i, four in enumerate(fours)]
        upper = tirx.shift_right(selector, tirx.const(16, "uint32"))
        for i in range(0, picks.among // 4, 2):
            pair = self.halves, tir.i64(i), self.halves, tir.i64(i + 1)
            to = (self.right, word) if picks.among == 8 else (self.halves, tir.i64(i))
            stmts.append(ptx.permute_bytes(*to, *pair, upper))
        if picks.among == OWN:
            pair = self.halves, tir.i64(0), self.halves, tir.i64(2)
            stmts.append(ptx.permute_bytes(self.right, word, *pair, second))
        return tir.seq(stmts)
