"""Attention of 16-bit operands on tensor cores: products of 16 queries with 16 keys at a time.

A lane has queries ``lane / 4`` and 8 further of each band of 16, and of each eight keys or values two
neighbours (PTX ISA, "Matrix Fragments for mma.m16n8k16").  So the scores of 16 keys are, rounded, the left
operand of their product with the values, and do not leave the registers (Dao, "FlashAttention-2", 2023).
Scores, softmax and sums are float32; a share is rounded to 16 bits, and its exponential need not be better.
"""

import math
from abc import abstractmethod

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.attention_online import Online, finite
from sparsec.schedules.cuda.attention_parts import Kernel
from sparsec.schedules.cuda.attention_split import Split
from sparsec.schedules.cuda.attention_tensor_tile import STEP, holds
from sparsec.schedules.cuda.attention_whole import Spilled, Whole
from sparsec.schedules.cuda.fragments import NUMBERS
from sparsec.schedules.cuda.target import WARP


def _scaled(tree) -> tuple[object, float]:
    """A score as another one and the factor that makes it that, which exponentials take in passing."""
    match tree:
        case ("Mul", "S", float(factor)) if factor > 0:
            return "S", factor
        case ("Div", "S", float(divisor)) if divisor > 0:
            return "S", 1 / divisor
        case _:
            return tree, 1.0


class Tensor(Kernel):
    """Products and copies: what is in the place of those of float32."""

    def reserve(self) -> None:
        tile, shape = self.tile, self.shape
        self.number_type = NUMBERS[self.spec.half]
        self.shared = ptx.shared(self.words.total, "uint32")
        self.staged, self.staging = ptx.view(self.shared, "float32")
        self.left = ptx.registers("left", tile.bands * 4, "uint32")
        self.right = ptx.registers("right", 4, "uint32")
        self.pair = ptx.registers("pair", 2, "float32")
        self.holds = self.kind == "online" and holds(tile, shape)
        steps = shape.d // STEP if self.holds else 1
        self.queries = ptx.registers("queries", tile.bands * 4 * steps, "uint32")

    def declared(self) -> list[tir.Stmt]:
        return [*tir.alloc([*self.buffers(), self.queries, self.pair]), self.staging]

    @property
    def lane(self):
        return self.thread % WARP

    # Lanes as tensor cores have them: registers of 8 x 8 results, those 8 rows below, the next 8 columns.

    def score_at(self, r, i):
        return (r // 2 * (self.tile.width // 2) + i // 2) * 4 + r % 2 * 2 + i % 2

    def sum_at(self, r, c, v):
        return (r // 2 * self.shape.parts + c) * 4 + r % 2 * 2 + v

    def key_at(self, i):
        return (i // 2 * self.tile.side + self.side) * 2 + i % 2

    # ---- products ---------------------------------------------------------------------------------------

    def load_queries(self, part, at) -> tir.Stmt:
        """Values ``16 part`` and on of the warp's queries to registers from ``at`` on."""
        tile, line = self.tile, self.shape.d_line
        rows = min(STEP, tile.height * tile.down)
        first = self.warp // tile.warps_k * (tile.height * tile.down) + self.lane % rows

        def band(b):
            word = (first + b * STEP) * line + part * (STEP // 2) + self.lane // STEP * 4
            return ptx.load_matrices(self.queries, at + b * 4, self.shared, word)

        return ptx.unrolled("b", tile.bands, band)

    def hold_queries(self) -> tir.Stmt:
        """All of them."""
        return ptx.unrolled(
            "d", self.shape.d // STEP, lambda part: self.load_queries(part, part * (self.tile.bands * 4))
        )

    def score(self, step, word) -> tir.Stmt:
        tile, shape, lane = self.tile, self.shape, self.lane
        key = self.turn * tile.own_keys + lane // STEP * 8 + lane % 8
        keys = word + key * shape.d_line + lane // 8 % 2 * 4

        def some(part):
            at = part * (tile.bands * 4) if self.holds else tir.i64(0)

            def sixteen(j):
                def multiply(b, x):
                    scores = (b * (tile.width // 2) + j * 2 + x) * 4
                    return self.multiply(self.scores, scores, self.queries, at + b * 4, x)

                matrices = keys + j * (STEP * shape.d_line) + part * (STEP // 2)
                load = ptx.load_matrices(self.right, tir.i64(0), self.shared, matrices)
                return tir.seq([load, ptx.unrolled_nest((tile.bands, 2), multiply)])

            products = ptx.unrolled("j", tile.own_keys // STEP, sixteen)
            return products if self.holds else tir.seq([self.load_queries(part, at), products])

        loop = ptx.unrolled if self.holds else tir.loop
        return tir.seq([ptx.zero(self.scores), loop("d", shape.d // STEP, some), self.finish_scores(step)])

    def attend(self, scores, word) -> tir.Stmt:
        """``scores``: where those of the thread's first query are, if in shared memory."""
        tile, shape, lane = self.tile, self.shape, self.lane
        key = self.turn * tile.own_keys + lane % STEP
        values = word + key * shape.e_line + lane // STEP * 4

        def sixteen(j):
            def columns(c):
                def multiply(b, x):
                    return self.multiply(self.sums, (b * shape.parts + c * 2 + x) * 4, self.left, b * 4, x)

                matrices = values + j * (STEP * shape.e_line) + c * (STEP // 2)
                load = ptx.load_matrices(self.right, tir.i64(0), self.shared, matrices, transposed=True)
                return tir.seq([load, ptx.unrolled_nest((tile.bands, 2), multiply)])

            shares = [self.round_shares(scores, j, b, i) for b in range(tile.bands) for i in range(4)]
            return tir.seq([*shares, ptx.unrolled("c", shape.e // STEP, columns)])

        return ptx.unrolled("j", tile.own_keys // STEP, sixteen)

    def round_shares(self, scores, j, b: int, i: int) -> tir.Stmt:
        """Word ``i`` of the left operand: 8 rows below for odd ones, 8 keys later for the last two."""
        r = min(b * 2 + i % 2, self.tile.height - 1)  # where there is no such row, any will do
        first = (j * 2 + i // 2) * 2
        stmts, shares = self.share_pair(scores, r, first)
        word = tirx.call_pure_extern("uint32", f"sparsec_pair_{self.spec.half}", *shares)
        return tir.seq([*stmts, tirx.BufferStore(self.left, word, [tir.i64(b * 4 + i)])])

    @abstractmethod
    def share_pair(self, scores, r: int, first) -> tuple[list[tir.Stmt], list[tir.Expr]]:
        """The shares of the thread's keys ``first`` and the next for query ``r``, and what to do before."""

    def multiply(self, sums: tir.Buffer, at, left: tir.Buffer, left_at, x) -> tir.Stmt:
        """Adds to eight columns, the ``x``-th of those in ``right``."""
        return ptx.multiply(self.number_type, sums, at, left, left_at, self.right, x * 2)


class TensorOnline(Tensor, Online):
    """Softmax: copies of keys and values run ``stages - 1`` rounds ahead."""

    def steps(self) -> list[tir.Stmt]:
        words, stages = self.words, self.tile.stages

        def keys(stage):
            return words.keys + stage * words.stage

        def fetch(i, stage):
            t = self.start + i
            values = self.fetch_values(t, keys(stage) + words.values)
            return tir.seq([self.fetch_keys(t, keys(stage)), values])

        def work(i, stage):
            t = self.start + i
            attend = self.attend(None, keys(stage) + words.values)
            return tir.seq([self.score(t, keys(stage)), self.each_row(self.exponentials), attend])

        *copies, rounds = ptx.pipeline(self.own, stages, fetch, work)
        come = [ptx.wait(stages - 1), ptx.barrier(), self.hold_queries()] if self.holds else []
        return [*self.start_rows(), self.fetch_queries(), ptx.commit(), *copies, *come, rounds]

    def score_tree(self):
        return _scaled(self.spec.score)[0]

    def below(self, score: tir.Expr, top: tir.Expr) -> tir.Expr:
        factor = tir.f32(_scaled(self.spec.score)[1] * math.log2(math.e))
        power = score * factor - finite(top) * factor
        return tirx.call_pure_extern("float32", "sparsec_share_exp2", power)

    def keep_share(self, r, i, share: tir.Expr) -> tir.Stmt:
        return self.score_is(r, i, share)

    def share_pair(self, scores, r: int, first):
        return [], [tir.load(self.scores, self.score_at(r, first + x)) for x in range(2)]


class TensorSplit(TensorOnline, Split):
    """The same by several blocks for a tile of queries."""


class TensorWhole(Tensor, Whole):
    """Any normaliser: the scores of all keys, and then their shares, are float32 in shared memory."""

    def share_pair(self, scores, r: int, first):
        word = scores + r * self.tile.down * self.words.score_line + first * self.tile.side + self.side * 2

        def lane(v):
            return tirx.BufferStore(self.pair, tir.load(self.staged, word + v), [v])

        return [tir.vector_loop(2, lane)], [tir.load(self.pair, tir.i64(x)) for x in range(2)]


class TensorSpilled(TensorWhole, Spilled):
    """The same with rows in the device's memory."""
