"""What works on whole rows: softmax, sparsemax, entmax, normalisations.

Sparsemax is Michelot's iteration, as in ``schedules/sparsemax``: the elements above tau only get fewer, and
when none was lost tau is exact.  Entmax takes the steps of ``schedules/entmax``.  A NaN is above everything,
and makes tau NaN.
"""

import math

from tvm import tirx

from sparsec.schedules import rows, tir
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.row import MemoryRow, Row
from sparsec.schedules.cuda.target import Gpu
from sparsec.schedules.entmax import ALPHA, Powers, last_step, positive, term
from sparsec.schedules.halves import HALVES
from sparsec.schedules.layer_norm import HALF, NARROW

_ONE, _ZERO = tir.f32(1.0), tir.f32(0.0)


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The kernel of a row operator along the last axes; None for other functions, axes, and empty tensors."""
    if not rows.is_op(func, *_OPS):
        return None
    steps, normalises = _OPS[str(func.attrs[rows.OP])]
    shape, axis = tir.shape_of(func.params[0]), int(func.attrs["sparsec.axis"])
    if 0 in shape or not normalises and math.prod(shape[axis + 1 :]) > 1:
        return None
    row = MemoryRow.of(func.params[0], func.params[-1], axis)
    made = ptx.narrow(
        tirx.PrimFunc(func.params, row.kernel(lambda: steps(row, func)), func.ret_type, func.attrs)
    )
    return made.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


def _add(a, b):
    return a + b


def softmax(row: Row, log: bool = False) -> list[tir.Stmt]:
    """Puts softmax of the row, or its logarithm, in its place."""
    top, total = row.number("top"), row.number("total")
    find_top = row.fold(top, float("-inf"), tirx.Max, lambda x: x)
    if log:
        add_up = row.fold(total, 0.0, _add, lambda x: tirx.exp(x - top.value))
        return [*find_top, *add_up, row.write(lambda x, _: x - top.value - tirx.log(total.value))]
    # Where the row is kept its exponentials take its place, and none is computed twice.
    change = row.change(lambda x: tirx.exp(x - top.value))
    if change is None:
        add_up = row.fold(total, 0.0, _add, lambda x: tirx.exp(x - top.value))
        return [*find_top, *add_up, row.write(lambda x, _: tirx.exp(x - top.value) / total.value)]
    return [
        *find_top,
        change,
        *row.fold(total, 0.0, _add, lambda e: e),
        row.write(lambda e, _: e / total.value),
    ]


def sparsemax(row: Row) -> list[tir.Stmt]:
    """Puts sparsemax of the row in its place."""
    names = ("top", "total", "count", "before", "tau")
    top, total, count, before, tau = (row.number(name) for name in names)

    def above(x, value):
        return tirx.Select(x - top.value <= tau.value, _ZERO, value)

    step = [
        before.set(count.value),
        *row.fold(total, 0.0, _add, lambda x: above(x, x - top.value)),
        *row.fold(count, 0.0, _add, lambda x: above(x, _ONE)),
        tau.set((total.value - _ONE) / count.value),
    ]
    return [
        *row.fold(top, float("-inf"), tirx.Max, lambda x: x),
        tau.set(tir.f32(-1.0)),
        count.set(tir.f32(float("inf"))),
        before.set(tir.f32(float("inf"))),
        *step,
        *row.repeat(lambda: count.value < before.value, step),
        row.write(lambda x, _: tirx.Max(x - top.value - tau.value, _ZERO)),
    ]


def entmax(row: Row, alpha: float) -> list[tir.Stmt]:
    """Puts entmax of the row in its place."""
    powers, last = Powers(alpha), tir.f32(last_step(alpha, row.extent))
    top, mass, slopes, tau, moved = (row.number(name) for name in ("top", "mass", "slopes", "tau", "moved"))

    def over(x):
        return (x - top.value) * tir.f32(powers.scale) - tau.value

    def slope(x, _=None):
        return term(powers.slope, over(x))

    def share(x, _=None):
        return positive(over(x), over(x) * slope(x))

    step = (mass.value - term(powers.damped, mass.value)) / slopes.value
    steps = [
        *row.fold_together({mass: share, slopes: slope}, 0.0, _add),
        # A row that has ended stays as it is, however long its neighbours in the warp take.
        moved.set(tirx.Select(moved.value > last, step, _ZERO)),
        tau.set(tau.value + moved.value),
    ]
    return [
        *row.fold(top, float("-inf"), tirx.Max, lambda x: x),
        tau.set(tir.f32(-1.0)),
        moved.set(_ONE),
        *row.repeat(lambda: moved.value > last, steps),
        row.write(share),
    ]


def _normalise(row: MemoryRow, func: tirx.PrimFunc) -> list[tir.Stmt]:
    mean, power = row.number("mean"), row.number("power")
    _, scale, *bias, _ = func.params
    eps, count = tir.f32(float(func.attrs["sparsec.eps"])), tir.f32(row.extent)
    centre = not rows.is_op(func, "rms_norm")
    half = HALVES[str(func.attrs[HALF])] if HALF in func.attrs else None

    def centred(x):
        return x - mean.value if centre else x

    def value(x, at):
        index = row.index(at)
        scaled = centred(x) * power.value * tir.load(scale, *index)
        shifted = scaled + tir.load(bias[0], *index) if bias else scaled
        return half.narrowed(shifted) if half else shifted

    find_mean = [*row.fold(mean, 0.0, _add, lambda x: x), mean.set(mean.value / count)] if centre else []
    return [
        *find_mean,
        *row.fold(power, 0.0, _add, lambda x: centred(x) * centred(x)),
        power.set(_ONE / tirx.sqrt(power.value / count + eps)),
        row.write(value),
    ]


#: Operator -> the statements of a row, and whether the row goes over all axes from the given one on.
_OPS = {
    "softmax": (lambda row, _: softmax(row), False),
    "log_softmax": (lambda row, _: softmax(row, log=True), False),
    "sparsemax": (lambda row, _: sparsemax(row), False),
    "entmax": (lambda row, func: entmax(row, float(func.attrs[ALPHA])), False),
    "layer_norm": (_normalise, True),
    NARROW: (_normalise, True),
    "rms_norm": (_normalise, True),
}
