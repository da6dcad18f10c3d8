"""LSTM, GRU and RNN over projections of the whole input, which a matrix product made before.

One function per layer and direction, with the loop over time inside.  With G gates (LSTM 4, GRU 3, RNN 1) and
column ``g*H + j`` for hidden unit j of gate g, gates in ONNX's order (LSTM i o f c, GRU z r h):

    XW  [T, B, G*H]   X times W^T plus both biases (for GRU with linear_before_reset, Rb_h stays apart)
    R   [H, G*H]      the recurrence weight transposed: R[k, g*H + j] is ONNX's R[g*H + j, k]

    LSTM  i, o, f = sigmoid(XW + h R);  c = f * c + i * tanh(XW_c + h R_c);  h = o * tanh(c)
    GRU   z, r = sigmoid(XW + h R);  h = (1 - z) * n + z * h  with  n = tanh(XW_h + (r * h) R_h),
          or, linear_before_reset,                              n = tanh(XW_h + r * (h R_h + Rb_h))
    RNN   h = tanh(XW + h R)

(ONNX operators LSTM, GRU, RNN with default activations.)  Everything is float32.  ``reverse`` walks time
backwards and stores each step at its own place; a bidirectional layer is two functions joined at the end.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import math, rows, tir, vector
from sparsec.schedules.target import Cpu

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_ACTIVATIONS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
SPEC = "sparsec.spec"

#: Sequences that share one pass over R; with four gates this fills 16 accumulators.
_TILE = 4


def check(kind: str, activations=(), sequence_lens=False, peepholes=False, input_forget=False) -> None:
    """Raises ValueError for what these kernels do not compute; ``activations`` are those of one direction."""
    expected = _ACTIVATIONS[kind]
    if activations and tuple(a.lower() for a in activations) != expected:
        raise ValueError(
            f"{kind.upper()}: required the activations {', '.join(expected)}, found "
            f"{', '.join(activations)}; rebuild the layer from plain operators"
        )
    for found, what in (
        (sequence_lens, "sequence_lens"),
        (peepholes, "peephole weights"),
        (input_forget, "input_forget"),
    ):
        if found:
            raise ValueError(f"{kind.upper()}: required no {what}, found some; rebuild the layer without")


@dataclass(frozen=True)
class Recurrent:
    """One direction of a recurrent layer; ``clip`` bounds what enters an activation, 0 is no bound.

    ``steps`` is T, ``batch`` B, ``hidden`` H.  Parameters of the function, in order:
    XW, R, [Rb_h (H,) with linear_before_reset], h0 (B, H), [c0 (B, H) for LSTM], then ``outputs``.
    """

    kind: str
    steps: int
    batch: int
    hidden: int
    reverse: bool = False
    linear_before_reset: bool = False
    clip: float = 0.0

    def __post_init__(self):
        if self.kind not in GATES:
            raise ValueError(
                f"Recurrent: required one of {', '.join(GATES)}, found {self.kind}; correct the kind"
            )

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """Shapes of the inputs, in order."""
        columns, state = GATES[self.kind] * self.hidden, (self.batch, self.hidden)
        shapes = [(self.steps, self.batch, columns), (self.hidden, columns)]
        if self.kind == "gru" and self.linear_before_reset:
            shapes.append((self.hidden,))
        return shapes + [state] * (2 if self.kind == "lstm" else 1)

    @property
    def outputs(self) -> list[tuple[int, ...]]:
        """Shapes of the outputs: Y (T, B, H), Y_h (B, H), then Y_c for LSTM, or scratch for a GRU that
        resets before its product, whose content means nothing."""
        state = (self.batch, self.hidden)
        extra = self.kind == "lstm" or self.kind == "gru" and not self.linear_before_reset
        return [(self.steps, self.batch, self.hidden), state] + [state] * extra

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled definition: the kernel of one lane."""
        shapes = self.inputs + self.outputs
        params = [tirx.decl_buffer([tir.i64(d) for d in s], "float32", f"p{n}") for n, s in enumerate(shapes)]
        func = tirx.PrimFunc(params, Kernel(self, params, 1, tile=1).body())
        attrs = {rows.OP: "recurrent", tir.OP_PATTERN: tir.OPAQUE, tir.NOALIAS: True, "s_tir": True}
        return func.with_attrs({**attrs, SPEC: json.dumps(dataclasses.asdict(self))})


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """Lanes over hidden units, all gates of a unit at once, a few sequences per pass over R."""
    if not rows.is_op(func, "recurrent"):
        return None
    spec = Recurrent(**json.loads(str(func.attrs[SPEC])))
    tile = _TILE if cpu.registers >= 32 else _TILE // 2
    body = Kernel(spec, list(func.params), cpu.lanes, tile).body()
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


class Kernel:
    def __init__(self, spec: Recurrent, params: list, lanes: int, tile: int):
        self.spec, self.tile = spec, tile
        self.lanes = min(lanes, vector.power_below(spec.hidden))
        self.lbr = spec.kind == "gru" and spec.linear_before_reset
        self.xw, self.r, *rest = params
        self.rb = rest.pop(0) if self.lbr else None
        self.h0 = rest.pop(0)
        self.c0 = rest.pop(0) if spec.kind == "lstm" else None
        self.y, self.h, *extra = rest
        # LSTM: the cell state.  GRU that resets first: r * h.
        self.c = extra[0] if extra else None

    def body(self) -> tir.Stmt:
        spec = self.spec
        work = spec.steps * spec.batch * spec.hidden * spec.hidden * GATES[spec.kind]
        full, left = divmod(spec.batch, self.tile)
        stmts = []
        if full:
            stmts.append(
                vector.spread((full,), work, lambda i: self.run(i[0] * tir.i64(self.tile), self.tile))
            )
        if left:
            stmts.append(self.run(tir.i64(full * self.tile), left))
        return tir.seq(stmts)

    def run(self, first, count: int) -> tir.Stmt:
        """All steps of the ``count`` sequences from ``first`` on."""
        batch = [first + tir.i64(b) for b in range(count)]
        spec = self.spec

        def time(step):
            t = tir.i64(spec.steps - 1) - step if spec.reverse else step
            kept = self.copy(batch, self.h, lambda b, j: tir.load(self.y, t, b, j))
            return tir.seq([*(self.units(t, batch, *phase) for phase in self.phases()), kept])

        start = [self.copy(batch, self.h, lambda b, j: tir.load(self.h0, b, j))]
        if spec.kind == "lstm":
            start.append(self.copy(batch, self.c, lambda b, j: tir.load(self.c0, b, j)))
        return tir.seq([*start, tir.loop("t", spec.steps, time)])

    def phases(self) -> list[tuple]:
        """What a step computes one after the other: pairs (state, gate) to multiply, and the cell."""
        if self.spec.kind == "rnn":
            return [([(self.h, 0)], self.rnn)]
        if self.spec.kind == "lstm":
            return [([(self.h, g) for g in range(4)], self.lstm)]
        if self.lbr:
            return [([(self.h, g) for g in range(3)], self.gru_linear)]
        return [([(self.h, 1)], self.reset), ([(self.h, 0), (self.c, 2)], self.gru)]

    def copy(self, batch: list, target, value: Callable) -> tir.Stmt:
        def unit(start, _):
            return tir.seq(
                tir.vector_loop(
                    self.lanes, lambda l, b=b: tirx.BufferStore(target, value(b, start + l), [b, start + l])
                )
                for b in batch
            )

        return self.each_unit(unit)

    def each_unit(self, body: Callable) -> tir.Stmt:
        """``body(start, fresh)`` for vectors of hidden units; units before ``fresh`` are done already."""
        steps = vector.Steps(self.spec.hidden, self.lanes)
        return tir.loop("j", steps.count, lambda j: body(steps.start(j), j * tir.i64(self.lanes)))

    def units(self, t, batch: list, gates: list, cell: Callable) -> tir.Stmt:
        """``cell(t, b, unit, sums, fresh)`` for every unit of every sequence, a vector at a time.

        ``gates`` are pairs (state, gate); ``sums[n]`` is ``sum_k state[b, k] * R[k, gate * H + unit]``.
        """
        lanes, first = self.lanes, batch[0]

        def each(start, fresh):
            acc = vector.stack("acc", len(batch) * len(gates) * lanes, "float32")

            def slot(b, n, l):
                return (b * tir.i64(len(gates)) + tir.i64(n)) * tir.i64(lanes) + l

            def add(k):
                stmts = []
                for b in range(len(batch)):
                    for n, (state, gate) in enumerate(gates):

                        def lane(l, b=b, n=n, state=state, gate=gate):
                            weight = tir.load(self.r, k, tir.i64(gate * self.spec.hidden) + start + l)
                            at = slot(tir.i64(b), n, l)
                            product = tir.load(state, batch[b], k) * weight
                            return tirx.BufferStore(acc, tir.load(acc, at) + product, [at])

                        stmts.append(tir.vector_loop(lanes, lane))
                return tir.seq(stmts)

            def zero(n):
                at = n * tir.i64(lanes)
                return tir.vector_loop(lanes, lambda l: tirx.BufferStore(acc, tir.f32(0.0), [at + l]))

            def finish(b):
                def lane(l):
                    sums = [tir.load(acc, slot(b, n, l)) for n in range(len(gates))]
                    return tir.seq(cell(t, first + b, start + l, sums, fresh))

                return tir.vector_loop(lanes, lane)

            return tir.seq(
                [
                    *tir.alloc([acc]),
                    tir.loop("n", len(batch) * len(gates), zero, "UNROLLED"),
                    tir.loop("k", self.spec.hidden, add),
                    tir.loop("b", len(batch), finish),
                ]
            )

        return self.each_unit(each)

    def x(self, t, b, gate: int, unit):
        return tir.load(self.xw, t, b, tir.i64(gate * self.spec.hidden) + unit)

    def bounded(self, value):
        clip = self.spec.clip
        if not clip:
            return value
        return math.maximum(math.minimum(value, tir.f32(clip)), tir.f32(-clip))

    def sigmoid(self, value):
        return tirx.sigmoid(self.bounded(value))

    def tanh(self, value):
        return tirx.tanh(self.bounded(value))

    def rnn(self, t, b, unit, sums, _):
        yield tirx.BufferStore(self.y, self.tanh(self.x(t, b, 0, unit) + sums[0]), [t, b, unit])

    def lstm(self, t, b, unit, sums, fresh):
        i, o, f, c = (self.x(t, b, g, unit) + total for g, total in enumerate(sums))
        old = tir.load(self.c, b, unit)
        state = self.sigmoid(f) * old + self.sigmoid(i) * self.tanh(c)
        # A unit that an earlier vector has moved on already must not move twice.
        yield tirx.BufferStore(self.c, tirx.Select(unit >= fresh, state, old), [b, unit])
        hidden = self.sigmoid(o) * tirx.tanh(tir.load(self.c, b, unit))
        yield tirx.BufferStore(self.y, hidden, [t, b, unit])

    def gru_linear(self, t, b, unit, sums, _):
        z, r = (self.sigmoid(self.x(t, b, g, unit) + sums[g]) for g in range(2))
        inner = self.x(t, b, 2, unit) + r * (sums[2] + tir.load(self.rb, unit))
        yield from self.blend(t, b, unit, z, self.tanh(inner))

    def reset(self, t, b, unit, sums, _):
        """r * h into the scratch state."""
        r = self.sigmoid(self.x(t, b, 1, unit) + sums[0])
        yield tirx.BufferStore(self.c, r * tir.load(self.h, b, unit), [b, unit])

    def gru(self, t, b, unit, sums, _):
        z = self.sigmoid(self.x(t, b, 0, unit) + sums[0])
        yield from self.blend(t, b, unit, z, self.tanh(self.x(t, b, 2, unit) + sums[1]))

    def blend(self, t, b, unit, z, new):
        # The output holds the update gate until the new state takes its place.
        yield tirx.BufferStore(self.y, z, [t, b, unit])
        gate = tir.load(self.y, t, b, unit)
        value = (tir.f32(1.0) - gate) * new + gate * tir.load(self.h, b, unit)
        yield tirx.BufferStore(self.y, value, [t, b, unit])
