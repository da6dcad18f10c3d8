"""How the attention kernel reads its operands: keys in panels, values, queries, and P.

========  =====================================  ==============================  =====================
form      stored                                 a step of a product             P
========  =====================================  ==============================  =====================
plain     float32                                one value                       float32, as computed
widened   bfloat16, level without its products   one value, widened beforehand   float32, as computed
words     bfloat16                               a pair, one instruction         rounded
widened   uint8, level without products of it    one integer, as a float         integers, as floats
words     uint8                                  a quad, see ``quads``           uint8
========  =====================================  ==============================  =====================

In words of bytes keys and values are less 128, so as int8, and ``attention_bytes`` puts that and the zero
points right.  As floats integers are less their zero points.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import elements, quads, tir
from sparsec.schedules.attention import Attention
from sparsec.schedules.batch_matmul_kernel import SQUARE, transpose
from sparsec.schedules.contraction_tile import pieces
from sparsec.schedules.elements import BFLOAT16, FLOAT32, INT8, Element
from sparsec.schedules.layout import PANEL, panels
from sparsec.schedules.target import Cpu


@dataclass(frozen=True)
class Source:
    """Q, K or V: a flat buffer; of bytes, the zero point as a float, and whether words are ``signed``."""

    buffer: tir.Buffer
    zero: tir.Expr | None = None
    signed: bool = False


@dataclass(frozen=True)
class Form:
    """A row of the table above, by what is ``stored`` and whether that is multiplied as ``words``."""

    cpu: Cpu
    stored: str

    @property
    def narrow(self) -> bool:
        return self.stored != "float32"

    @property
    def words(self) -> bool:
        if self.bytes:
            return quads.in_registers(self.cpu, self.cpu.lanes)
        return self.narrow and elements.pair_products(self.cpu)

    @property
    def bytes(self) -> bool:
        return self.stored == "uint8"

    @property
    def widened(self) -> bool:
        return self.narrow and not self.words

    @property
    def element(self) -> Element:
        """What is multiplied."""
        return {"uint8": INT8, "uint16": BFLOAT16}[self.stored] if self.words else FLOAT32

    @property
    def group(self) -> int:
        """Values of a step."""
        return self.element.group

    @property
    def dtype(self) -> str:
        """Of a step, as panels hold it."""
        return self.element.weight

    @property
    def product(self) -> Callable:
        """As ``Tile.multiply_add`` takes it."""
        return functools.partial(self.element.multiply_add, self.cpu)

    def steps(self, depth: int) -> int:
        return -(-depth // self.group)

    def each_step(self, depth: int, make: Callable, start: int = 0) -> list[tir.Stmt]:
        """``make(step, values)`` for the steps from ``start`` on; the last may have fewer ``values``."""
        whole, rest = divmod(depth, self.group)
        stmts = (
            []
            if whole <= start
            else [tir.loop("s", whole - start, lambda s: make(s, self.group), start=start)]
        )
        return [*stmts, make(tir.i64(whole), rest)] if rest else stmts

    def value(self, source: Source, places: list, neighbours: bool = False) -> tir.Expr:
        """The step whose values lie at ``places`` of ``source``, where they may be ``neighbours``."""
        if self.words and neighbours and len(places) == self.group:
            word = self.element.word(self.cpu, source.buffer, [[place] for place in places], True)
        else:
            loaded = [tirx.BufferLoad(source.buffer, [place]) for place in places]
            word = self.wide(source, *loaded) if self.widened else self.element.joined(loaded)
        return word ^ tir.i32(quads.signs(len(places))) if self.words and source.signed else word

    def neighbours(self, source: Source, place, lanes: int) -> tir.Expr:
        """A vector of ``lanes`` steps whose values are neighbours from ``place`` on."""
        loaded = tir.vector_load(source.buffer, place, lanes=lanes * self.group)
        if self.words:
            words = tirx.reinterpret(f"int32x{lanes}", loaded)
            return words ^ tir.broadcast(tir.i32(quads.signs()), lanes) if source.signed else words
        return self.wide(source, loaded, lanes) if self.widened else loaded

    def wide(self, source: Source, loaded, lanes: int = 1) -> tir.Expr:
        """The float32 of what is stored, one number or a vector."""
        if not self.bytes:
            return elements.widened(loaded, lanes)
        dtypes = ("int32", "float32") if lanes == 1 else (f"int32x{lanes}", f"float32x{lanes}")
        real = loaded.astype(dtypes[0]).astype(dtypes[1])
        return real - (source.zero if lanes == 1 else tir.broadcast(source.zero, lanes))


def form_of(cpu: Cpu, spec: Attention) -> Form:
    return Form(cpu, spec.q.dtype)


def staged(
    form: Form, source: Source, place: Callable, depth: int, columns: int, target: tir.Buffer
) -> list[tir.Stmt]:
    """``target[s, c]``: step ``s`` of the column of ``depth`` values that lie at ``place(row, c)``."""

    def step(s, values: int) -> tir.Stmt:
        def one(c):
            places = [place(s * form.group + i, c) for i in range(values)]
            return tirx.BufferStore(target, form.value(source, places), [s, c])

        return tir.seq(
            tir.vector_loop(width, lambda c, off=off: one(off + c))
            for off, width in pieces(columns, form.cpu.lanes)
        )

    return form.each_step(depth, step)


@dataclass(frozen=True)
class Keys:
    """Turns the keys of a batch: ``panels[p, s, c]`` is step ``s`` of key ``16 p + c``, 0 where none is."""

    form: Form
    spec: Attention
    k: Source
    batch: list
    panels: tir.Buffer
    lanes: int

    def turn(self) -> list[tir.Stmt]:
        spec, form = self.spec, self.form
        side = min(self.lanes, SQUARE)
        by_values, by_keys = spec.k.strides[-1] == 1, spec.k.strides[-2] == 1
        stmts = self.clear() if spec.n % PANEL else []
        if by_values:
            whole, deep = spec.n // side * side, spec.d // form.group // side * side
            whole, deep = (whole, deep) if whole and deep else (0, 0)
            squares = lambda r: tir.loop("s", deep // side, lambda s: self.square(r * side, s * side, side))  # noqa: E731
            stmts += [tir.loop("r", whole // side, squares)] if whole else []
        elif by_keys:  # they are turned already
            whole, deep = spec.n // PANEL * PANEL, form.steps(spec.d)
            copy = lambda p: tir.seq(form.each_step(spec.d, functools.partial(self.panel_step, p)))  # noqa: E731
            stmts += [tir.loop("p", whole // PANEL, copy)] if whole else []
        else:
            whole = deep = 0
        for low, high, start in ((0, whole, deep), (whole, spec.n, 0)):
            if low < high and start < form.steps(spec.d):
                one = lambda r, start=start: tir.seq(  # noqa: E731
                    form.each_step(spec.d, functools.partial(self.copy, r), start)
                )
                stmts.append(tir.loop("r", high - low, one, start=low))
        return stmts

    def clear(self) -> list[tir.Stmt]:
        last, nought = tir.i64(panels(self.spec.n) - 1), tirx.const(0, self.form.dtype)

        def step(s):
            return tir.vector_loop(PANEL, lambda c: tirx.BufferStore(self.panels, nought, [last, s, c]))

        return [tir.loop("s", self.form.steps(self.spec.d), step)]

    def value(self, key, step, values: int) -> tir.Expr:
        places = [self.spec.k.at([*self.batch, key, step * self.form.group + i]) for i in range(values)]
        return self.form.value(self.k, places, self.spec.k.strides[-1] == 1)

    def panel_step(self, panel, step, values: int) -> tir.Stmt:
        def one(c):
            return tirx.BufferStore(
                self.panels, self.value(panel * PANEL + c, step, values), [panel, step, c]
            )

        return tir.vector_loop(PANEL, one)

    def copy(self, key, step, values: int) -> tir.Stmt:
        panel, lane = tirx.floordiv(key, tir.i64(PANEL)), tirx.floormod(key, tir.i64(PANEL))
        return tirx.BufferStore(self.panels, self.value(key, step, values), [panel, step, lane])

    def square(self, key, step, side: int) -> tir.Stmt:
        """Turns ``side`` keys by ``side`` steps in registers."""
        stmts = []

        def bind(value):
            name = tirx.Var(f"s{len(stmts)}", value.ty)
            stmts.append(tirx.Bind(name, value))
            return name

        def row(r):
            return self.spec.k.at([*self.batch, key + tir.i64(r), step * self.form.group])

        loaded = [bind(self.form.neighbours(self.k, row(r), side)) for r in range(side)]
        panel, lane = tirx.floordiv(key, tir.i64(PANEL)), tirx.floormod(key, tir.i64(PANEL))
        for i, value in enumerate(transpose(loaded, side, bind)):
            stmts.append(tir.vector_store(self.panels, value, panel, step + tir.i64(i), lane, lanes=side))
        return tir.seq(stmts)
