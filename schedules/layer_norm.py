"""LayerNormalization and RMSNormalization over the trailing axes.

    layer_norm(x) = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * scale + bias
    rms_norm(x)   = x / sqrt(mean(x^2) + eps) * scale

The variance is taken around the mean in a second pass, so large offsets cost no digits.
"""

from math import prod

from tvm import te, tirx

from sparsec.schedules import rows, tir
from sparsec.schedules.halves import Half
from sparsec.schedules.target import Cpu

_COST = 6
#: A layer_norm that writes 16 bits, of the format that the attribute HALF names; CPUs have no rule for it.
NARROW, HALF = "narrow_layer_norm", "sparsec.half"


def layer_norm(
    shape: tuple[int, ...], axis: int, eps: float, has_bias: bool, half: Half | None = None
) -> tirx.PrimFunc:
    """The unscheduled definition ``(X, scale, [bias], Y)``, all float32; ``half``: Y is rounded to its bits.

    ``X`` and ``Y`` have ``shape``; ``scale`` and ``bias`` have ``shape[axis:]``, the normalised axes.
    """
    axis = rows.normal_axis("layer_norm", axis, len(shape))
    lead, row = shape[:axis], shape[axis:]
    x = te.placeholder(shape, "float32", "X")
    scale = te.placeholder(row, "float32", "scale")
    bias = te.placeholder(row, "float32", "bias")
    mean = _mean(lead, row, lambda i, k: x[(*i, *k)], "mean")
    centred = te.compute(shape, lambda *i: x[i] - mean[i[:axis]], "centred")
    variance = _mean(lead, row, lambda i, k: centred[(*i, *k)] * centred[(*i, *k)], "variance")

    def value(*i):
        normal = centred[i] / te.sqrt(variance[i[:axis]] + tir.f32(eps)) * scale[i[axis:]]
        normal = normal + bias[i[axis:]] if has_bias else normal
        return half.narrowed(normal) if half else normal

    y = te.compute(shape, value, "Y")
    args = [x, scale, bias, y] if has_bias else [x, scale, y]
    attrs = {"sparsec.axis": axis, "sparsec.eps": float(eps)}
    if half is None:
        return rows.definition("layer_norm", args, attrs)
    return rows.definition(NARROW, args, attrs | {HALF: half.name})


def rms_norm(shape: tuple[int, ...], axis: int, eps: float) -> tirx.PrimFunc:
    """The unscheduled definition ``(X, scale, Y)``, all float32; ``scale`` has ``shape[axis:]``."""
    axis = rows.normal_axis("rms_norm", axis, len(shape))
    x = te.placeholder(shape, "float32", "X")
    scale = te.placeholder(shape[axis:], "float32", "scale")
    square = _mean(shape[:axis], shape[axis:], lambda i, k: x[(*i, *k)] * x[(*i, *k)], "square")
    y = te.compute(shape, lambda *i: x[i] / te.sqrt(square[i[:axis]] + tir.f32(eps)) * scale[i[axis:]], "Y")
    return rows.definition("rms_norm", [x, scale, y], {"sparsec.axis": axis, "sparsec.eps": float(eps)})


def _mean(lead: tuple, row: tuple, value, name: str):
    axes = [te.reduce_axis((0, extent), f"k{position}") for position, extent in enumerate(row)]
    total = te.compute(lead, lambda *i: te.sum(value(i, axes), axis=axes), f"{name}_sum")
    return te.compute(lead, lambda *i: total[i] / tir.f32(prod(row)), name)


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """Passes over a row in cache: mean; variance; normalise and scale."""
    if not rows.is_op(func, "layer_norm", "rms_norm"):
        return None
    centre = rows.is_op(func, "layer_norm")
    x, scale, *bias, y = func.params
    axis, eps = int(func.attrs["sparsec.axis"]), float(func.attrs["sparsec.eps"])
    shape = tir.shape_of(x)
    count = prod(shape[axis:])

    def body(row: rows.Row):
        mean, power = row.state("mean"), row.state("power")

        def centred(place, l):
            value = tir.load(x, *place.index(l))
            return value - row.get(mean, l, place.row) if centre else value

        def add_up(place):
            yield row.fold_in(
                mean,
                place,
                lambda l: place.only_fresh(l, tir.load(x, *place.index(l)), tir.f32(0.0)),
                rows.add,
            )

        def add_squares(place):
            def square(l):
                value = place.only_fresh(l, centred(place, l), tir.f32(0.0))
                name = tirx.Var("d", value.ty)
                return tirx.Let(name, value, name * name)

            yield row.fold_in(power, place, square, rows.add)

        def normalise(place):
            def lane(l):
                index = place.index(l)
                value = centred(place, l) * row.get(power, l, place.row) * tir.load(scale, *index[axis:])
                if bias:
                    value = value + tir.load(bias[0], *index[axis:])
                return tirx.BufferStore(y, value, index)

            yield from row.ahead(x, place)
            yield row.put(lane)

        def deviation(l, r):
            return tir.f32(1.0) / tirx.sqrt(row.get(power, l, r) / tir.f32(count) + tir.f32(eps))

        find_mean = [
            row.fill(mean, 0.0),
            row.sweep(add_up),
            *row.fold(mean, rows.add),
            *row.set(mean, lambda l, r: row.get(mean, l, r) / tir.f32(count)),
        ]
        return [
            *tir.alloc([mean, power] if centre else [power]),
            *(find_mean if centre else []),
            row.fill(power, 0.0),
            row.sweep(add_squares),
            *row.fold(power, rows.add),
            *row.set(power, deviation),
            row.sweep(normalise),
        ]

    return rows.kernel(func, axis, len(shape) - axis, _COST, cpu, body)
