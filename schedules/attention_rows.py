"""The normaliser of the attention kernel: rows of scores become rows of P, where they lie.

The rows consist of whole vectors; what is behind the last key is -inf and becomes 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import entmax_rows, math, rows, tir, vector
from sparsec.schedules.attention_bytes import Corrections

#: Rows taken at once, up to this many keys: folding one takes as long as reading them.
TOGETHER, SHORT = 4, 512


@dataclass(frozen=True)
class Normaliser:
    """Makes P of the first ``width`` columns of every row of ``scores``.

    Softmax leaves the exponentials, for the reader to multiply by ``factor[row]``.  With ``guard`` they are
    multiplied here, and ``guard(row, value)`` of P is what stays.  With ``narrow`` P is rounded to there;
    with ``bytes``, for whom P is integers, they are stored there.
    """

    name: str
    alpha: float
    scores: tir.Buffer
    factor: tir.Buffer
    width: int
    lanes: int
    guard: Callable | None
    narrow: tir.Buffer | None = None
    bytes: Corrections | None = None

    @property
    def at_once(self) -> bool:
        """Whether P is rounded while its exponentials are in registers."""
        return self.name == "softmax" and self.guard is None

    def body(self) -> list[tir.Stmt]:
        together = TOGETHER if self.width <= SHORT else 1
        whole, rest = divmod(tir.shape_of(self.scores)[0], together)
        stmts = []
        if whole:
            stmts.append(tir.loop("rows", whole, lambda i: self.group(i * tir.i64(together), together)))
        if rest:
            stmts.append(self.group(tir.i64(whole * together), rest))
        return stmts

    def group(self, first, count: int) -> tir.Stmt:
        """``count`` rows from ``first`` on."""
        row = rows.Row(
            coordinates=lambda r, k, l: [first + r, k + l],
            extent=self.width,
            lanes=self.lanes,
            unroll=min(max(1, TOGETHER // count), vector.power_below(self.width // self.lanes)),
            rows=count,
            along=True,
            streamed=False,
            far=False,
        )
        if self.name == "softmax":
            stmts = self.exponentials(row, first)
        else:
            stmts = entmax_rows.project(row, self.scores, self.scores, self.alpha)
        if self.bytes:
            return tir.seq([*stmts, *self.integers(row, first)])
        if self.guard is not None:
            stmts.append(row.sweep(lambda place: [row.vector(lambda l: self.guarded(place, l))]))
        if self.narrow is not None and not self.at_once:
            stmts.append(row.sweep(lambda place: [row.vector(lambda l: self.rounded(place, l))]))
        return tir.seq(stmts)

    def exponentials(self, row: rows.Row, first) -> list[tir.Stmt]:
        scores, top, total = self.scores, row.state("top"), row.state("total")

        def find_top(place):
            yield row.fold_in(top, place, lambda l: tir.load(scores, *place.index(l)), rows.maximum)

        def exponential(place):
            def lane(l):
                at = place.index(l)
                value = math.exp_not_positive(tir.load(scores, *at) - row.get(top, l, place.row))
                return tirx.BufferStore(scores, value, at)

            yield row.vector(lane)
            if self.narrow is not None and self.at_once:
                yield row.vector(lambda l: self.rounded(place, l))
            yield row.fold_in(total, place, lambda l: tir.load(scores, *place.index(l)), rows.add)

        def invert(r):
            value = tir.f32(1.0) / row.get(total, tir.i64(0), r)
            return tirx.BufferStore(self.factor, value, [first + tir.i64(r)])

        return [
            *tir.alloc([top, total]),
            row.fill(top, float("-inf")),
            row.fill(total, 0.0),
            row.sweep(find_top),
            *row.fold(top, rows.maximum),
            row.sweep(exponential),
            *row.fold(total, rows.add),
            *map(invert, range(row.rows)),
        ]

    def integers(self, row: rows.Row, first) -> list[tir.Stmt]:
        """P as bytes, and the sums of its rows, which are exact in float32 up to 65 thousand keys."""
        total = row.state("integers")

        def one(place):
            yield row.vector(lambda l: self.guarded(place, l))
            yield row.fold_in(total, place, lambda l: tir.load(self.scores, *place.index(l)), rows.add)

            def byte(l):
                at = place.index(l)
                return tirx.BufferStore(self.narrow, self.bytes.stored_share(tir.load(self.scores, *at)), at)

            yield row.vector(byte)

        sums = [
            self.bytes.of_share(first + tir.i64(r), row.get(total, tir.i64(0), r)) for r in range(row.rows)
        ]
        return [*tir.alloc([total]), row.fill(total, 0.0), row.sweep(one), *row.fold(total, rows.add), *sums]

    def guarded(self, place: rows.Place, l) -> tir.Stmt:
        at = place.index(l)
        value = tir.load(self.scores, *at)
        if self.name == "softmax":
            value = value * tir.load(self.factor, at[0])
        return tirx.BufferStore(self.scores, self.guard(at[0], value), at)

    def rounded(self, place: rows.Place, l) -> tir.Stmt:
        at = place.index(l)
        return tirx.BufferStore(self.narrow, math.to_bfloat16(tir.load(self.scores, *at)), at)
