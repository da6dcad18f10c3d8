"""Attention of bytes multiplied as words: what zero points add to both products, and P as bytes.

With keys and values stored as ``k - 128`` and ``v - 128``, zero points ``zk`` and ``zv`` less 128, too,

    sum_d (q - zq) (k - zk)  =  sum_d q k  -  zq sum_d k  -  zk sum_d (q - zq)
    sum_j (p - zp) (v - zv)  =  sum_j p v  -  zp sum_j v  -  zv sum_j (p - zp)

The middle terms belong to a key and to a column of V and are computed once for all queries, the last ones to
a query.
"""

from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import quads, tir
from sparsec.schedules.attention import ZERO, Attention
from sparsec.schedules.attention_operands import Form, Source
from sparsec.schedules.contraction_tile import Tile
from sparsec.schedules.layout import PANEL, panels


@dataclass(frozen=True)
class Corrections:
    """int32 buffers: one number for each key and column of V, and for each query of a block."""

    form: Form
    spec: Attention
    numbers: tir.Buffer
    keys: tir.Buffer
    columns: tir.Buffer
    queries: tir.Buffer
    shares: tir.Buffer

    @staticmethod
    def make(form: Form, spec: Attention, numbers: tir.Buffer, block: int) -> "Corrections":
        sizes = {"keys": panels(spec.n) * PANEL, "columns": panels(spec.e) * PANEL}
        sizes |= {"queries": block, "shares": block}
        buffers = (tir.scratch(f"of_{name}", size, dtype="int32") for name, size in sizes.items())
        return Corrections(form, spec, numbers, *buffers)

    @property
    def buffers(self) -> list[tir.Buffer]:
        return [self.keys, self.columns, self.queries, self.shares]

    def zero(self, name: str, stored: bool = False) -> tir.Expr:
        """A zero point, of what is ``stored`` as int8 less 128."""
        value = tir.load(self.numbers, tir.i64(ZERO[name])).astype("int32")
        return value - tir.i32(128) if stored else value

    # Once for all queries -------------------------------------------------------------------------

    def of_keys(self, stored: tir.Buffer) -> list[tir.Stmt]:
        """From the panels of keys."""

        def one(panel):
            load = lambda s, c, lanes: tir.vector_load(stored, panel, s, c, lanes=lanes)  # noqa: E731
            return self._sums(load, self.form.steps(self.spec.d), self.keys, panel * PANEL, "q")

        return [tir.loop("panel", panels(self.spec.n), one)]

    def of_columns(self, stored: tir.Buffer) -> list[tir.Stmt]:
        """From the words of values."""

        def one(panel):
            at = panel * PANEL
            load = lambda s, c, lanes: tir.vector_load(stored, s, at + c, lanes=lanes)  # noqa: E731
            return self._sums(load, self.form.steps(self.spec.n), self.columns, at, "p")

        return [tir.loop("panel", panels(self.spec.e), one)]

    def _sums(self, load, steps: int, target: tir.Buffer, at, other: str) -> tir.Stmt:
        """``target[at:]``: sums over the words of 16 columns, times minus the ``other`` zero point.

        Where what is multiplied of the other factor is 128 less than it is, so is its zero point.
        """
        cpu = self.form.cpu
        lanes, zero = min(cpu.lanes, PANEL), self.zero(other, quads.signed(cpu))
        tile = Tile(lanes, 1, PANEL, "int32")

        def step(s):
            product = lambda total, _, w: quads.weight_sum(cpu, total, w)  # noqa: E731
            weight = lambda v: load(s, tir.i64(v), lanes)  # noqa: E731
            return tile.multiply_add(lambda r, v: tir.i32(0), weight, PANEL, product=product)

        def store(c):
            return tirx.BufferStore(target, -zero * tir.load(tile.acc[0], c), [at + c])

        stores = [tir.vector_loop(lanes, lambda c, v=v: store(c + tir.i64(v))) for v in tile.vectors()]
        return tir.seq([*tile.allocate(), *tile.zero(), tir.loop("s", steps, step), *stores])

    # For a block of queries -----------------------------------------------------------------------

    def of_queries(self, q: Source, place, block: int) -> list[tir.Stmt]:
        """From queries whose values lie at ``place(row, d)``."""
        total, first = tir.local("total", 1, dtype="int32"), tir.i64(0)

        def one(r):
            def add(d):
                value = tirx.BufferLoad(q.buffer, [place(r, d)]).astype("int32")
                return tirx.BufferStore(total, tir.load(total, first) + value, [first])

            moved = tir.load(total, first) - tir.i32(self.spec.d) * self.zero("q")
            return tir.seq(
                [
                    tirx.BufferStore(total, tir.i32(0), [first]),
                    tir.loop("d", self.spec.d, add),
                    tirx.BufferStore(self.queries, -self.zero("k", True) * moved, [r]),
                ]
            )

        return [*tir.alloc([total]), tir.loop("r", block, one)]

    def of_share(self, row, total) -> tir.Stmt:
        """From the sum of the row's integers of P."""
        return tirx.BufferStore(self.shares, -self.zero("v", True) * total.astype("int32"), [row])

    def stored_share(self, value) -> tir.Expr:
        """An integer of P, a float less its zero point, as the byte that is multiplied."""
        return (value.astype("int32") + self.zero("p")).astype("uint8")
