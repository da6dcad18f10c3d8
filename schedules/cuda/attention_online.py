"""Softmax attention whose scores are forgotten after each round of keys."""

from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.attention import Attention, evaluate
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.attention_parts import LOW, ONE, ZERO, Kernel
from sparsec.schedules.cuda.attention_tile import Shape, Tile


class Online(Kernel):
    """Softmax, whose scores are forgotten after a round.  Keys are copied while values are used, and back."""

    kind = "online"

    def __init__(self, spec: Attention, shape: Shape, tile: Tile, params: list[tir.Buffer]):
        super().__init__(spec, shape, tile, params)
        self.tops, self.totals = (ptx.registers(n, tile.height, "float32") for n in ("tops", "totals"))
        self.joins(tile.warps_k)

    def buffers(self) -> list[tir.Buffer]:
        return [*super().buffers(), self.tops, self.totals, self.numbers, self.factors]

    def joins(self, parts: int) -> None:
        """Registers for what joins so many parts of a row."""
        self.numbers = ptx.registers("numbers", 2, "float32")
        self.factors = ptx.registers("factors", parts, "float32")

    def number(self, i: int) -> tir.Expr:
        return tir.load(self.numbers, tir.i64(i))

    def number_is(self, i: int, value: tir.Expr) -> tir.Stmt:
        return tirx.BufferStore(self.numbers, value, [tir.i64(i)])

    def factor(self, part: int) -> tir.Expr:
        return tir.load(self.factors, tir.i64(part))

    def factor_is(self, part: int, value: tir.Expr) -> tir.Stmt:
        return tirx.BufferStore(self.factors, value, [tir.i64(part)])

    def weights(self) -> list:
        return [self.factor(turn) for turn in range(self.tile.warps_k)]

    def steps(self) -> list[tir.Stmt]:
        words, rows = self.words, self.tile.height * self.tile.down
        self.own_scores = words.scores + (self.warp * rows + self.row % rows) * words.score_line

        def step(i):
            t = self.start + i
            return tir.seq(
                [
                    ptx.wait(0),
                    ptx.barrier(),
                    self.fetch_values(t, words.values),
                    ptx.commit(),
                    self.score(t, words.keys),
                    self.each_row(self.exponentials),
                    ptx.wait(0),
                    ptx.barrier(),
                    ptx.when(i + 1 < self.own, self.fetch_keys(t + 1, words.keys)),
                    ptx.commit(),
                    self.attend(self.own_scores, words.values),
                ]
            )

        return [
            *self.start_rows(),
            self.fetch_queries(),
            self.fetch_keys(tir.i64(0) + self.start, words.keys),
            ptx.commit(),
            tir.loop("step", self.own, step),
        ]

    def start_rows(self) -> list[tir.Stmt]:
        return [
            self.each_row(lambda r: tirx.BufferStore(self.tops, LOW, [r])),
            ptx.zero(self.totals),
        ]

    def below(self, score: tir.Expr, top: tir.Expr) -> tir.Expr:
        """The exponential of what ``score`` is above ``top``, which is nothing or less."""
        return tirx.exp(score - finite(top))

    def keep_share(self, r, i, share: tir.Expr) -> tir.Stmt:
        """Puts an exponential where ``attend`` reads it."""
        tile = self.tile
        at = self.own_scores + r * (tile.down * self.words.score_line) + self.key_at(i)
        return ptx.put_shared(self.shared, at, share)

    def exponentials(self, r) -> tir.Stmt:
        """Takes the exponentials of a query's scores, and all sums to the new top."""
        top, factor, total = self.number(0), self.number(1), tir.load(self.totals, r)

        def raise_top(_, s):
            return self.number_is(0, _larger(top, s))

        def use(i, s):
            return tir.seq(
                [
                    self.score_is(r, i, self.below(s, top)),
                    tirx.BufferStore(self.totals, total + s, [r]),
                    self.keep_share(r, i, self.counted(s)),
                ]
            )

        def shrink(c, v):
            at = self.sum_at(r, c, v)
            return tirx.BufferStore(self.sums, tir.load(self.sums, at) * factor, [at])

        before = tir.load(self.tops, r)
        return tir.seq(
            [
                self.number_is(0, before),
                self.each_score(r, raise_top),
                *self.across(self.numbers, tir.i64(0), _larger),
                self.number_is(1, self.below(before, top)),
                self.number_is(1, self.counted(factor)),
                tirx.BufferStore(self.tops, top, [r]),
                tirx.BufferStore(self.totals, total * factor, [r]),
                self.each_score(r, use),
                ptx.unrolled_nest((self.shape.parts, self.shape.vector), shrink),
            ]
        )

    def across(self, buffer: tir.Buffer, at, join: Callable) -> list[tir.Stmt]:
        """Joins ``buffer[at]`` of the lanes side by side, for all of them."""
        value = tir.load(buffer, at)
        steps = (by for by in (4, 2, 1) if by < self.tile.side)
        return [tirx.BufferStore(buffer, join(value, ptx.shuffle_xor(value, by)), [at]) for by in steps]

    def counted(self, value: tir.Expr) -> tir.Expr:
        """What becomes of NaN in the sums: with a guard they must last till it is asked."""
        if self.spec.guard == "S":
            return value
        return tirx.Select(tirx.isnan(value), ZERO, value)

    def finish_rows(self, own) -> list[tir.Stmt]:
        def one(r):
            def put(word, buffer):
                return ptx.put_shared(self.staged, word + own + r * self.tile.down, tir.load(buffer, r))

            both = tir.seq([put(self.words.tops, self.tops), put(self.words.totals, self.totals)])
            return tir.seq([*self.across(self.totals, r, lambda a, b: a + b), ptx.when(self.side < 1, both)])

        return [self.each_row(one)]

    def weigh(self, row) -> list[tir.Stmt]:
        def of_row(word):
            return lambda turn: tir.load(self.staged, word + turn * self.tile.queries + row)

        joined = self.join(self.tile.warps_k, of_row(self.words.tops), of_row(self.words.totals))
        return [*joined, *self.divide(row, self.tile.warps_k)]

    def join(self, parts: int, top_of: Callable, total_of: Callable) -> list[tir.Stmt]:
        """Finds ``factors`` that take the sums of ``parts`` to the largest top, and both numbers of it."""
        top, total = self.number(0), self.number(1)

        def one(part):
            return [
                self.factor_is(part, self.below(top_of(part), top)),
                self.factor_is(part, self.counted(self.factor(part))),
                self.number_is(1, total + total_of(part) * self.factor(part)),
            ]

        return [
            self.number_is(0, LOW),
            *(self.number_is(0, _larger(top, top_of(part))) for part in range(parts)),
            self.number_is(1, ZERO),
            *(stmt for part in range(parts) for stmt in one(part)),
        ]

    def divide(self, row, parts: int) -> list[tir.Stmt]:
        """Divides ``factors`` by the total of the row."""
        scale = self.number(1)
        return [
            self.number_is(1, self.guarded(row, scale)),
            *(self.factor_is(part, self.factor(part) * scale) for part in range(parts)),
        ]

    def guarded(self, row, total: tir.Expr) -> tir.Expr:
        """What a row with this sum of exponentials is multiplied by."""
        if self.spec.guard == "S":
            return ONE / total
        logical = [*self.batch, self.first + row, tir.i64(0)]
        # No key at all leaves a sum of nothing, which makes NaN of softmax.
        share = tirx.Select(total > ZERO, total, tir.f32(float("nan")))
        given = evaluate(self.spec.guard[1], share, self.leaves(logical))
        return tirx.Select(given, ZERO, ONE / total)


def finite(top: tir.Expr) -> tir.Expr:
    """What scores are taken to: nothing but -inf so far is taken to 0, for -inf - -inf is NaN."""
    return tirx.Select(top <= LOW, ZERO, top)


def _larger(a: tir.Expr, b: tir.Expr) -> tir.Expr:
    """One instruction, which forgets a NaN: the exponentials have it still, and so has their sum."""
    return tirx.call_pure_extern("float32", "fmaxf", a, b)
