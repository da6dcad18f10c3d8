"""The kernel of depthwise convolutions in float32: memory limits them, so registers hold what is read twice.

A thread has a vector of channels of some output pixels side by side: an input that several of them multiply
is read once, as a vector, and threads side by side read neighbours.
"""

import itertools
from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction import find_anchor
from sparsec.schedules.contraction_epilogue import Epilogue, extract
from sparsec.schedules.contraction_rule import operands
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.results import every
from sparsec.schedules.cuda.target import THREADS, Gpu
from sparsec.schedules.depthwise import Depthwise
from sparsec.schedules.elements import FLOAT32, INPUTS

#: Channels of a thread where that many lie side by side on both sides, and its pixels at most.
_CHANNELS, _PIXELS = 4, 4


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The kernel of a function with a ``Depthwise``, and its tail fused; None for other functions."""
    found = find_anchor(func)
    if not found or not isinstance(found[0], Depthwise) or 0 in (*found[0].x_shape, *found[0].y_shape):
        return None
    spec, block = found
    epilogue = extract(func, block)
    if isinstance(epilogue, str) or spec.kind not in (FLOAT32, *INPUTS):
        return None
    x, weights = operands(spec, block)
    if not all(any(b.same_as(p) for p in func.params) for b in (x, *weights)):
        return None
    body = _Kernel(spec, x, weights[0], epilogue).body()
    made = ptx.narrow(tirx.PrimFunc(func.params, body, func.ret_type, func.attrs))
    return made.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


class _Kernel:
    def __init__(self, spec: Depthwise, x: tir.Buffer, weight: tir.Buffer, epilogue: Epilogue):
        self.spec, self.x, self.weight, self.epilogue = spec, x, weight, epilogue
        self.vector = _CHANNELS if spec.in_c == spec.out_c and spec.out_c % _CHANNELS == 0 else 1
        self.pixels = min(_PIXELS, spec.out_w)
        self.sums = ptx.registers("sums", self.pixels * self.vector, "float32")
        self.taps = ptx.registers("taps", spec.k_w * self.vector, "float32")
        self.input = ptx.registers("input", self.vector, "float32")

    def body(self) -> tir.Stmt:
        spec = self.spec
        extents = spec.batch, spec.out_h, -(-spec.out_w // self.pixels), spec.out_c // self.vector
        count = extents[0] * extents[1] * extents[2] * extents[3]

        def block(number, thread):
            at = number * THREADS + thread
            self.image, self.row, tile, channels = tir.unflatten(at, extents)
            self.first, self.channel = tile * self.pixels, channels * self.vector
            work = [ptx.zero(self.sums), tir.loop("kh", spec.k_h, self._kernel_row), self._finish()]
            made = ptx.when(at < count if count % THREADS else None, tir.seq(work))
            return tir.seq([*tir.alloc([self.sums, self.taps, self.input]), made])

        return ptx.grid((-(-count // THREADS),), THREADS, block)

    def _kernel_row(self, kh) -> tir.Stmt:
        spec = self.spec
        line = self.row * spec.strides[0] + kh * spec.dilations[0] - spec.pads[0]

        def tap(kw):
            place = [kh, kw, self.channel]
            return self._copy(self.taps, kw, lambda v: self._at(self.weight, place, v))

        load = ptx.unrolled("kw", spec.k_w, tap)
        users: dict[int, list[tuple[int, int]]] = {}
        for pixel, kw in itertools.product(range(self.pixels), range(spec.k_w)):
            column = pixel * spec.strides[1] + kw * spec.dilations[1]
            users.setdefault(column, []).append((pixel, kw))
        columns = [self._column(line, column, pairs) for column, pairs in sorted(users.items())]
        inside = every(
            line >= 0 if spec.pads[0] else None,
            line < spec.in_h if spec.pads[2] else None,
        )
        return ptx.when(inside, tir.seq([load, *columns]))

    def _column(self, line, offset: int, pairs: list[tuple[int, int]]) -> tir.Stmt:
        """All that is done with the input ``offset`` columns behind the first of the first pixel."""
        spec = self.spec
        column = self.first * spec.strides[1] + (offset - spec.pads[1])
        # The last tile may reach beyond the image, whose pixels are not stored.
        inside = every(
            column >= 0 if offset < spec.pads[1] else None,
            column < spec.in_w if spec.pads[3] or spec.out_w % self.pixels else None,
        )
        channel = None if self.vector > 1 else tirx.floordiv(self.channel, tir.i64(spec.out_c // spec.in_c))
        place = [self.image, line, column, self.channel if channel is None else channel]
        stmts = [
            self._copy(
                self.input, tir.i64(0), lambda v: spec.kind.activation_value(self._at(self.x, place, v))
            )
        ]
        for pixel, kw in pairs:

            def multiply(v, pixel=pixel, kw=kw):
                at = pixel * self.vector + v
                product = tir.load(self.input, v) * tir.load(self.taps, kw * self.vector + v)
                return tirx.BufferStore(self.sums, tir.load(self.sums, at) + product, [at])

            stmts.append(ptx.unrolled("v", self.vector, multiply))
        return ptx.when(inside, tir.seq(stmts))

    def _copy(self, to: tir.Buffer, vector, value: Callable) -> tir.Stmt:
        def lane(v):
            return tirx.BufferStore(to, value(v), [vector * self.vector + v])

        return tir.vector_loop(self.vector, lane)

    def _at(self, source: tir.Buffer, place: list, v) -> tir.Expr:
        *outer, first = place
        return tir.load(source, *outer, first + v)

    def _finish(self) -> tir.Stmt:
        def pixel(p):
            column = self.first + p

            def lane(v):
                index = [self.image, self.row, column, self.channel + v]
                return tir.seq(self.epilogue.stores(index, tir.load(self.sums, p * self.vector + v)))

            exists = column < self.spec.out_w if self.spec.out_w % self.pixels else None
            return ptx.when(exists, tir.vector_loop(self.vector, lane))

        return ptx.unrolled("p", self.pixels, pixel)
