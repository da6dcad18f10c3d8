"""Activations rounded to 16 bits, each group of each row on a scale of its own.

    scale = max(max|x|, 2^-100) / 32639,   q = round(x / scale)     over the channels of a group

``X[..., 0, :]`` has the numbers q themselves, if ``ordered`` in the order 0 2 1 3 within each four: so a
pair of them meets two bytes of a word that are two apart.  ``X[..., 1, :]`` has them as bytes, first all the
upper ones, then all the lower ones, both signed: ``q = 256 * upper + lower``.  ``XS[..., 0, :]`` has the
scales, ``XS[..., 1, :]`` the sums of q, which float32 holds exactly.  A kernel reads what its CPU multiplies.
Both end with room for a vector that begins at the last channels.

A group that holds a NaN or an infinity has that for its scale, so no product with it is finite either.  The
last group is filled with zeros.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from tvm import tirx

from sparsec.schedules import tir, vector

_LANES = 16
#: The place of each of four neighbours; also which of the four is at a place.
ORDER = (0, 2, 1, 3)
#: The largest number of two signed bytes, each at most 127.
LIMIT = 127 * 256 + 127
#: Numbers behind the last channel: what a vector of 16 bytes may read there.
_SPARE = 8
#: Instructions for a value, about.
_COST = 4
_MAGNITUDE, _SMALLEST = 0x7FFFFFFF, int(np.float32(2.0**-100).view(np.int32))
#: Added to a number below 2^22 it leaves the nearest integer in the lower bits, above its own.
_ROUND = 12582912.0
_ROUND_BITS = int(np.float32(_ROUND).view(np.int32))


def place(channel: np.ndarray) -> np.ndarray:
    """Where X has a channel; also which channel it has there."""
    return channel // 4 * 4 + np.array(ORDER)[channel % 4]


@dataclass(frozen=True)
class Groups:
    """``X [*lead, k]`` in groups of ``size`` channels, a multiple of 16."""

    lead: tuple[int, ...]
    k: int
    size: int
    ordered: bool = True

    @property
    def count(self) -> int:
        return -(-self.k // self.size)

    @property
    def depth(self) -> int:
        """Channels with those that fill the last group."""
        return self.count * self.size

    def args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of X and XS."""
        return [((*self.lead, 2, self.depth + _SPARE), "int16"), ((*self.lead, 2, self.count), "float32")]

    def quantise(self, x: np.ndarray) -> list[np.ndarray]:
        """What the kernel computes, with zeros in what is spare."""
        padded = np.zeros((*self.lead, self.depth), np.float32)
        padded[..., : self.k] = x
        groups = padded.reshape(*self.lead, self.count, self.size)
        most = np.maximum(np.abs(groups).max(-1), np.float32(2.0**-100))
        exact = groups.astype(np.float64) * (np.float32(LIMIT) / most)[..., None]  # as a fused product
        q = np.rint(exact).astype(np.int16)
        upper = (q.astype(np.int32) + 128 >> 8).astype(np.int8).reshape(padded.shape)
        lower = q.astype(np.int8).reshape(padded.shape)
        words = np.concatenate([upper, lower], -1).view(np.int16)
        numbers = q.reshape(-1, 4)[:, ORDER if self.ordered else slice(None)].reshape(padded.shape)
        both = np.stack([numbers, words], -2)
        return [
            np.pad(both, [(0, 0)] * (both.ndim - 1) + [(0, _SPARE)]),
            np.stack([most / np.float32(LIMIT), q.sum(-1, dtype="f")], -2),
        ]

    def prim_func(self) -> tirx.PrimFunc:
        """The function ``(input, X, XS)``, scheduled already."""
        shapes = [((*self.lead, self.k), "float32"), *self.args()]
        params = [
            tirx.decl_buffer([tir.i64(d) for d in shape], dtype, name=name)
            for (shape, dtype), name in zip(shapes, ("input", "X", "XS"), strict=True)
        ]
        whole, rest = divmod(self.k, self.size)
        lead = prod(self.lead)

        def row(where):
            at = tir.unflatten(where[0], self.lead)
            stmts = [tir.loop("g", whole, lambda g: self._group(params, at, g))] if whole else []
            return tir.seq([*stmts, *(self._last(params, at, rest) if rest else [])])

        func = tirx.PrimFunc(params, vector.spread((lead,), lead * self.k * _COST, row))
        attrs = {tir.NOALIAS: True, tir.SCHEDULED: True, tir.OP_PATTERN: tir.OPAQUE, "s_tir": True}
        return func.with_attrs(attrs)

    def _last(self, params: list, row: list, inside: int) -> list[tir.Stmt]:
        """The last group, of which ``inside`` channels are there."""
        source, *_ = params
        padded = vector.stack("padded", self.size, "float32")
        first = tir.i64((self.count - 1) * self.size)
        copy = lambda c: tirx.BufferStore(padded, tir.load(source, *row, first + c), [c])  # noqa: E731
        blank = lambda c: tirx.BufferStore(padded, tir.f32(0.0), [c])  # noqa: E731
        return [
            *tir.alloc([padded]),
            tir.loop("c", inside, copy),
            tir.loop("c", self.size - inside, blank, start=inside),
            self._group(params, row, tir.i64(self.count - 1), padded),
        ]

    def _group(self, params: list, row: list, g, padded: tir.Buffer | None = None) -> tir.Stmt:
        """One group, read from ``padded`` if that is given."""
        source, x, xs = params
        start, zero = g * tir.i64(self.size), tir.i64(0)
        most, total = (vector.stack(name, _LANES, "int32") for name in ("most", "total"))
        largest, factor = (vector.stack(name, 1, "float32") for name in ("largest", "factor"))

        def chunk(j):
            if padded is not None:
                return tir.vector_load(padded, j * tir.i64(_LANES), lanes=_LANES)
            return tir.vector_load(source, *row, start + j * tir.i64(_LANES), lanes=_LANES)

        def look(j):
            bits = tirx.reinterpret(_INTS, chunk(j)) & _splat(_MAGNITUDE)
            return _put(most, tirx.max(_get(most), bits), zero)

        def round_(j):
            at = start + j * tir.i64(_LANES)
            exact = chunk(j) * tir.broadcast(tir.load(factor, zero), _LANES)
            bits = tirx.reinterpret(_INTS, exact + tir.broadcast(tir.f32(_ROUND), _LANES))
            q = tirx.Var("q", bits.ty)
            half = tirx.floordiv(at, tir.i64(2))
            upper = (q + _splat(128)) >> _splat(8)
            numbers = q.astype(f"int16x{_LANES}")
            return tir.seq(
                [
                    tirx.Bind(q, bits - _splat(_ROUND_BITS)),
                    _put(total, _get(total) + q, zero),
                    _put(x, tir.shuffle(numbers, _ORDERED) if self.ordered else numbers, *row, zero, at),
                    _put(x, _bytes(upper), *row, tir.i64(1), half),
                    _put(x, _bytes(q), *row, tir.i64(1), half + tir.i64(self.depth // 2)),
                ]
            )

        count = self.size // _LANES
        return tir.seq(
            [
                *tir.alloc([most, total, largest, factor]),
                _put(most, _splat(_SMALLEST), zero),
                _put(total, _splat(0), zero),
                tir.loop("j", tir.i64(count), look),
                *_fold(most, tirx.max),
                tirx.BufferStore(largest, tirx.reinterpret("float32", tir.load(most, zero)), [zero]),
                tirx.BufferStore(factor, tir.f32(LIMIT) / tir.load(largest, zero), [zero]),
                tirx.BufferStore(xs, tir.load(largest, zero) / tir.f32(LIMIT), [*row, zero, g]),
                tir.loop("j", tir.i64(count), round_),
                *_fold(total, lambda a, b: a + b),
                tirx.BufferStore(xs, tir.load(total, zero).astype("float32"), [*row, tir.i64(1), g]),
            ]
        )


_INTS = f"int32x{_LANES}"
_ORDERED = [4 * (lane // 4) + ORDER[lane % 4] for lane in range(_LANES)]


def _splat(value: int):
    return tir.broadcast(tir.i32(value), _LANES)


def _get(buffer: tir.Buffer):
    return tir.vector_load(buffer, tir.i64(0), lanes=_LANES)


def _put(buffer: tir.Buffer, value, *index) -> tir.Stmt:
    return tir.vector_store(buffer, value, *index, lanes=tir.lanes_of(value))


def _bytes(values):
    """The lower bytes of int32 lanes, two in an int16."""
    return tirx.reinterpret(f"int16x{_LANES // 2}", values.astype(f"int8x{_LANES}"))


def _fold(buffer: tir.Buffer, combine) -> list[tir.Stmt]:
    """Combines the lanes of ``buffer`` into the first."""
    stmts, width = [], _LANES
    while width > 1:
        width //= 2
        upper = tir.vector_load(buffer, tir.i64(width), lanes=width)
        lower = tir.vector_load(buffer, tir.i64(0), lanes=width)
        stmts.append(tir.vector_store(buffer, combine(lower, upper), tir.i64(0), lanes=width))
    return stmts
