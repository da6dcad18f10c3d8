"""Products with a constant weight on tensor cores, dense or 2:4: what they compute.

``TensorGemm`` and ``TensorConv`` are specs like those of ``contraction``: dense, ``sparse`` (2:4), or with a
pattern that lanes pick (``picked``: the fields of ``Picks``).  Operands are float16, bfloat16 or
tf32, sums and results float32; what follows, the rounding to 16 bits first of all, is fused into the kernel.
A convolution is a product over columns ``(tap, channel)``, whose inputs are never laid out as a matrix.
"""

import json
import math
from dataclasses import astuple, dataclass

import numpy as np
import tvm_ffi
from tvm import te, tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction import Conv, Gemm
from sparsec.schedules.contraction_pixels import pixel
from sparsec.schedules.contraction_spec import (
    Image,
    anchor,
    annotated,
    check_weight,
    placeholder,
    reduce_axis,
)
from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.fragments import NUMBERS, Number
from sparsec.schedules.cuda.picks import BLOCK, OWN, Picks
from sparsec.schedules.cuda.picks import place as picks_place
from sparsec.schedules.cuda.results import every
from sparsec.schedules.elements import Element
from sparsec.schedules.halves import HALVES

#: Precision of a layer in the compiler -> what tensor cores multiply.
PRECISIONS = {f"{name} on tensor cores": name for name in NUMBERS}


class _Product:
    """What both specs have in common: ``channels`` inputs at each of ``taps``, ``n`` outputs a row."""

    def __post_init__(self):
        if self.dtype not in NUMBERS:
            raise ValueError(f"{self._name}: required one of {', '.join(NUMBERS)}, found {self.dtype}")
        if (self.sparse or self.picked) and self.number.bytes != 2:
            raise ValueError(f"{self._name}: required a 16-bit format for zeros, found {self.dtype}")
        if self.channels != stored_channels(self.channels, self.sparse, self.dtype):
            raise ValueError(
                f"{self._name}: required a multiple of {4 if self.sparse else 2} inputs, "
                f"found {self.channels}; pad them with zeros"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def number(self) -> Number:
        return NUMBERS[self.dtype]

    @property
    def picks(self) -> Picks | None:
        return Picks(*self.picked) if self.picked else None

    @property
    def steps(self) -> int:
        """Fragments of a block."""
        return self.picks.steps if self.picked else fragments.steps(self.sparse)

    @property
    def metadata(self) -> int:
        """Words of metadata, or selectors, of a band and a block."""
        return self.picks.metadata if self.picked else fragments.LANES if self.sparse else 0

    @property
    def stored(self) -> int:
        """Columns of the weight that are stored for each channel."""
        if self.picked:
            return -(-self.columns // BLOCK) * self.steps * fragments.COLUMNS
        return self.columns // 2 if self.sparse else self.columns

    @property
    def kind(self) -> Element:
        """How values lie in memory, for the compiler."""
        return Element(self.dtype, self.number.activation, "uint32")

    @property
    def rows(self) -> int:
        return math.prod(self.lead)

    @property
    def columns(self) -> int:
        return self.taps * self.channels

    @property
    def copy_bytes(self) -> int:
        """What can be copied at once: a copy must not cross the end of a tap, and be aligned."""
        return math.gcd(16, self.channels * self.number.bytes)

    def weight_args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each packed array."""
        if self.picked:
            return self.picks.shapes(self.n, self.columns)
        return fragments.shapes(self.sparse, self.n, self.columns, self.number)

    def pack(self, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Packs the float32 ``weight``, ``[n, k]`` or ``[n, k_h, k_w, in_c]``.

        ``kept`` marks what to store, else non-zeros.  The last axis may lack the channels that are padding.
        """
        shape = self.weight_shape[:-1] + weight.shape[-1:]
        check_weight(f"{self._name}.pack", weight, shape if shape[-1] <= self.channels else self.weight_shape)
        fill = [(0, 0)] * (weight.ndim - 1) + [(0, self.channels - weight.shape[-1])]
        weight, kept = (
            None if array is None else np.pad(array, fill).reshape(self.n, -1) for array in (weight, kept)
        )
        if self.picked:
            return self.picks.pack(weight, self.number, kept)
        return fragments.pack(self.sparse, weight, self.number, kept)

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled function ``(X, W, [E], Y)``, E being the metadata or the selectors."""
        x = placeholder(self.x_shape, self.number.activation, "X")
        packed = [placeholder(s, d, name) for (s, d), name in zip(self.weight_args(), "WE", strict=False)]
        stored = [tir.i64(self.stored), tir.i64(self.n)]
        values = te.compute(stored, lambda c, o: self._stored(packed[0], o, c), "values")
        columns = None
        if len(packed) > 1:
            find = self._picked_column if self.picked else _column
            columns = te.compute(stored, lambda c, o: find(packed[1], o, c), "columns")
        c = reduce_axis(self.stored, "c")

        def value(*i):
            *at, o = i
            column = c.var if columns is None else columns[c.var, o]
            source, inside = self.source(at, tirx.min(column, tir.i64(self.columns - 1)))
            read = self._value(x(*source))
            inside = every(inside, column < self.columns if self.picked and self.columns % BLOCK else None)
            if inside is not None:
                read = tirx.if_then_else(inside, read, tir.f32(0.0))
            return te.sum(read * values[c.var, o], axis=[c])

        return anchor(self, [x, *packed], self.y_shape, value)

    def _stored(self, words: te.Tensor, row, column):
        """The value at ``column`` of the stored ones of output ``row``."""
        per_word = 4 // self.number.bytes
        word = column // per_word
        block = self.steps * fragments.WORDS
        lane, at = fragments.place(row % fragments.ROWS, word % fragments.WORDS)
        step = word % block // fragments.WORDS
        bits = words[row // fragments.ROWS, word // block, step, lane, at]
        if per_word == 1:
            return tirx.reinterpret("float32", bits)
        half = bits.astype("int64") >> (column % per_word * 16) & tir.i64(0xFFFF)
        return HALVES[self.dtype].widened(half.astype("uint16"))

    def _picked_column(self, selectors: te.Tensor, row, stored):
        """The column of the dense weight that a stored one is."""
        picks = self.picks
        block, word, t, x = picks_place(picks, stored)
        first, *second = (
            selectors[row // fragments.ROWS, block, word, i, t].astype("int64")
            for i in range(picks.selectors)
        )
        at = (first >> (x * 8) & tir.i64(7)) // 2 + (first >> (x * 8 + 16) & tir.i64(4))
        if second:
            at = at + (second[0] >> (x * 8) & tir.i64(4)) * 2
        else:
            at = at + word * 2 // (picks.kept // 2) * 8
        return block * BLOCK + t * OWN + at

    def _value(self, stored):
        """What is multiplied of an activation as it lies in memory."""
        return HALVES[self.dtype].widened(stored) if self.number.bytes == 2 else _tf32(stored)


def _column(words: te.Tensor, row, column):
    """The column of the dense weight that a stored one is."""
    stored = 2 * fragments.COLUMNS
    step = column % stored // fragments.COLUMNS
    lane, bit = fragments.metadata_place(row % fragments.ROWS, step, column % fragments.COLUMNS)
    word = words[row // fragments.ROWS, column // stored, lane].astype("int64")
    return column // 2 * 4 + (word >> bit & tir.i64(3))


def _tf32(x):
    """float32 rounded as ``bits.to_tf32``."""
    near = tirx.reinterpret("int32", x) + tir.i32(0x1000) & tir.i32(-0x2000)
    # A NaN is not <= infinity; it might wrap around.
    return tirx.Select(x <= tir.f32(float("inf")), tirx.reinterpret("float32", near), x)


@dataclass(frozen=True)
class TensorGemm(_Product):
    """``Y[*lead, n] = sum_k X[*lead, k] * W[n, k]`` in float32; X and the constant W are of ``dtype``."""

    lead: tuple[int, ...]
    k: int
    n: int
    sparse: bool = False
    dtype: str = "float16"
    picked: tuple[int, ...] = ()

    taps = 1

    @property
    def channels(self) -> int:
        return self.k

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.k)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.n)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.n, self.k

    def source(self, at: list, column) -> tuple[list, None]:
        """The index in X of ``column`` of the row at ``at``; and that it always exists."""
        return [*at, column], None


@dataclass(frozen=True)
class TensorConv(Image, _Product):
    """A ``Conv`` without groups; X and the constant weight ``[out_c, k_h, k_w, in_c]`` are of ``dtype``."""

    sparse: bool = False
    dtype: str = "float16"
    picked: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        return self.k_h * self.k_w

    @property
    def channels(self) -> int:
        return self.in_c

    @property
    def n(self) -> int:
        return self.out_c

    @property
    def lead(self) -> tuple[int, ...]:
        return self.y_shape[:-1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_c, self.k_h, self.k_w, self.in_c

    def source(self, at: list, column) -> tuple[list, tir.Expr | None]:
        """The index in X of ``column`` for the output pixel ``at``, else near it; whether it exists."""
        tap, channel = (column // self.in_c, column % self.in_c) if self.taps > 1 else (tir.i64(0), column)
        place, inside = pixel(self, *at, tap // self.k_w, tap % self.k_w)
        return [*place, channel], inside


KINDS = {kind.__name__: kind for kind in (TensorGemm, TensorConv)}


def stored_channels(channels: int, sparse: bool, dtype: str) -> int:
    """``channels`` with those of zeros that words of 4 bytes, and groups of 2:4, take behind them."""
    if NUMBERS[dtype].bytes == 4 or channels % (4 if sparse else 2) == 0:
        return channels
    return -(-channels // 4) * 4


def why_not(spec) -> str | None:
    """Why there is no product for tensor cores in the place of a ``Gemm`` or ``Conv``, or None."""
    if not isinstance(spec, Gemm | Conv):
        return f"a {type(spec).__name__.lower()} convolution"
    return "a convolution in groups" if getattr(spec, "groups", 1) > 1 else None


def picks_of(spec: Gemm | Conv, dtype: str) -> Picks | None:
    """How lanes pick the inputs that the pattern of ``spec`` keeps, or None."""
    return Picks.of(spec.pattern, spec.x_shape[-1]) if NUMBERS[dtype].bytes == 2 else None


def on_tensor_cores(spec):
    """The product for tensor cores of a ``Gemm`` or ``Conv`` whose precision is one of ``PRECISIONS``.

    Where the spec has a pattern that lanes can pick, they do, else it is 2:4; its X has ``stored_channels``.
    Every other spec stays as it is.
    """
    dtype = PRECISIONS.get(getattr(spec, "precision", None))
    if dtype is None:
        return spec
    picks = picks_of(spec, dtype)
    sparse, picked = not spec.pattern.dense and not picks, astuple(picks) if picks else ()
    if isinstance(spec, Conv):
        shape = {f: getattr(spec, f) for f in Image.__dataclass_fields__}
        return TensorConv(
            **shape | {"in_c": stored_channels(spec.in_c, sparse, dtype)},
            sparse=sparse,
            dtype=dtype,
            picked=picked,
        )
    *lead, k = spec.x_shape
    return TensorGemm(tuple(lead), stored_channels(k, sparse, dtype), spec.y_shape[-1], sparse, dtype, picked)


def find_anchor(func: tirx.PrimFunc) -> tuple[TensorGemm | TensorConv, tir.Block] | None:
    """The spec and the block of a product in a function before or after fusion, or None."""
    found = annotated(func)
    if found is None:
        return None
    fields = json.loads(found[0])
    kind = KINDS.get(fields.pop("kind"))
    if kind is None:
        return None
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}), found[1]


def operands(func: tirx.PrimFunc, block: tir.Block) -> tuple[tir.Buffer, list[tir.Buffer]] | None:
    """X and [W, E], parameters of ``func``; None where X is computed in the function itself.

    The anchor's block reads X; what it reads beside, the blocks before it make of W and of E.
    """
    made = {inner.writes[0].source: inner for inner in tir.blocks(func.body)}
    read = _reads(block)
    x = [buffer for buffer in read if buffer not in made]
    unpacked = [made[buffer] for buffer in read if buffer in made]
    by_name = {inner.name_hint.rstrip("_0123456789"): _reads(inner)[0] for inner in unpacked}
    if len(x) != 1 or not by_name.keys() <= {"values", "columns"}:
        return None
    return x[0], [by_name[name] for name in ("values", "columns") if name in by_name]


def _reads(block: tir.Block) -> list[tir.Buffer]:
    own = block.writes[0].source
    read: list[tir.Buffer] = []

    def visit(node):
        if not any(node.source.same_as(known) for known in (*read, own)):
            read.append(node.source)

    tvm_ffi.structural_walk(block.body, (tir.TensorLoad, visit))
    return read
