"""Sparsemax along any axis: the Euclidean projection of a row onto the probability simplex.

    sparsemax(x)_i = max(x_i - tau, 0),   tau such that the row sums to one

(Martins and Astudillo, "From Softmax to Sparsemax", 2016, eq. 2).  With z = x - max(x), tau is in [-1, 0) and

    tau = (sum of the z_i above tau - 1) / (how many they are)                                        (*)

which the definition finds by comparing every pair, and the kernel by iterating (*) (Michelot, "A finite
algorithm for finding the projection of a point onto the canonical simplex of R^n", 1986): started at or below
the solution, it only ever drops elements, so it ends, and ends at the exact support: when no element above
the old tau is left out by the new one.  A row that holds NaN or
+inf, or nothing but -inf, is NaN throughout.
"""

from collections.abc import Callable

from tvm import te, tirx

from sparsec.schedules import rows, tir
from sparsec.schedules.elementwise import keep_nan
from sparsec.schedules.target import Cpu

_COST = 12
_LEADER_STEPS = 3


def sparsemax(shape: tuple[int, ...], axis: int = -1) -> tirx.PrimFunc:
    """The unscheduled definition ``(X, Y)``, both float32 of ``shape``."""
    axis = rows.normal_axis("sparsemax", axis, len(shape))
    x = te.placeholder(shape, "float32", "X")
    return rows.definition("sparsemax", [x, stages(x, shape, axis)], {"sparsec.axis": axis})


def stages(x: te.Tensor, shape: tuple[int, ...], axis: int) -> te.Tensor:
    """Sparsemax of ``x`` along ``axis``, counted from the front."""
    extent = shape[axis]
    without = shape[:axis] + shape[axis + 1 :]

    def put(i, k):
        return (*i[:axis], k, *i[axis:])

    def drop(i):
        return (*i[:axis], *i[axis + 1 :])

    zero, one = tir.f32(0.0), tir.f32(1.0)
    k = [te.reduce_axis((0, extent), f"k{n}") for n in range(5)]
    top = te.compute(without, lambda *i: te.max(x[put(i, k[0])], axis=[k[0]]), "top")
    z = te.compute(shape, lambda *i: x[i] - top[drop(i)], "z")

    def at_least(i, j, value):
        return te.sum(tirx.Select(z[put(drop(i), j)] >= z[i], value, zero), axis=[j])

    rank = te.compute(shape, lambda *i: at_least(i, k[1], one), "rank")
    above = te.compute(shape, lambda *i: at_least(i, k[2], z[put(drop(i), k[2])]), "above")
    # z_i is in the support when 1 + rank_i z_i > sum of the values from z_i upwards (ibid., proposition 1).
    inside = te.compute(shape, lambda *i: tirx.Select(one + rank[i] * z[i] > above[i], one, zero), "inside")
    count = te.compute(without, lambda *i: te.sum(inside[put(i, k[3])], axis=[k[3]]), "count")
    kept = te.compute(
        without,
        lambda *i: te.sum(tirx.Select(inside[put(i, k[4])] > zero, z[put(i, k[4])], zero), axis=[k[4]]),
        "kept",
    )
    return te.compute(
        shape, lambda *i: keep_nan(tirx.max(z[i] - (kept[drop(i)] - one) / count[drop(i)], zero)), "Y"
    )


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """Maximum, then Michelot's iteration over the row in cache, then the difference; no sort, no scratch."""
    if not rows.is_op(func, "sparsemax"):
        return None
    x, y = func.params
    axis = int(func.attrs["sparsec.axis"])
    return rows.kernel(func, axis, 1, _COST, cpu, lambda row: project(row, x, y))


def project(row: rows.Row, x: tir.Buffer, y: tir.Buffer) -> list[tir.Stmt]:
    """The statements that put sparsemax of the rows at hand of ``x`` into ``y``.

    ``y`` may be ``x`` itself where the rows have no tail.
    """
    names = ("top", "total", "count", "tau", "least", "flag")
    top, total, count, tau, least, flag = buffers = [row.state(n) for n in names]
    leaders = row.state("leaders")
    none = tir.f32(float("inf"))

    def shifted(place, l):
        return tir.load(x, *place.index(l)) - row.get(top, l, place.row)

    def find_top(place):
        # Each element is in one lane only: the leaders' sum must not count one twice.
        def value(l):
            return place.only_fresh(l, tir.load(x, *place.index(l)), tir.f32(float("-inf")))

        yield row.fold_in(top, place, value, rows.maximum)

    def add_up(place, value: Callable):
        """Sum and number of the values above tau."""

        def above(l, part: Callable):
            z = tirx.Var("z", "float32")
            # NaN is above everything: one makes tau, and so the row, NaN.
            chosen = tirx.Select(z <= row.get(tau, l, place.row), tir.f32(0.0), part(z))
            return place.only_fresh(l, tirx.Let(z, value(l), chosen), tir.f32(0.0))

        yield row.fold_in(total, place, lambda l: above(l, lambda z: z), rows.add)
        yield row.fold_in(count, place, lambda l: above(l, lambda z: tir.f32(1.0)), rows.add)

    def gather(place):
        def smallest(l):
            z = tirx.Var("z", "float32")
            chosen = tirx.Select(z <= row.get(tau, l, place.row), none, z)
            return tirx.Let(z, shifted(place, l), chosen)

        yield from add_up(place, lambda l: shifted(place, l))
        yield row.fold_in(least, place, smallest, rows.minimum)

    def step(sweep: tir.Stmt):
        """Moves tau to where the elements above it, which ``sweep`` adds up, would sum to one."""
        return [
            row.fill(total, 0.0),
            row.fill(count, 0.0),
            sweep,
            *row.fold(total, rows.add),
            *row.fold(count, rows.add),
            *row.set(tau, lambda l, r: (row.get(total, l, r) - tir.f32(1.0)) / row.get(count, l, r)),
        ]

    def finish(place):
        def lane(l):
            value = tirx.max(shifted(place, l) - row.get(tau, l, place.row), tir.f32(0.0))
            return tirx.BufferStore(y, keep_nan(value), place.index(l))

        yield row.put(lane)

    def dropped(l, r):
        """Whether the new tau leaves out what was above the old one."""
        lost = row.get(least, l, r) <= row.get(tau, l, r)
        return tirx.Select(lost, tir.f32(1.0), tir.f32(0.0))

    iteration = [
        row.fill(least, float("inf")),
        *step(row.sweep(gather)),
        *row.fold(least, rows.minimum),
        *row.set(flag, dropped),
        *row.fold_rows(flag, rows.add),
    ]

    def of_leaders(place):
        def value(l):
            return tir.load(leaders, tir.i64(place.slot * row.lanes) + l) - row.get(top, l, place.row)

        return add_up(place, value)

    # The largest of each lane alone give a good lower bound of tau, without another look at the row.
    head = []
    if row.along and row.extent >= 2 * row.lanes:
        head = step(row.states(of_leaders)) * _LEADER_STEPS
    return [
        *tir.alloc([*buffers, leaders]),
        row.fill(top, float("-inf")),
        row.sweep(find_top),
        row.vector(lambda l: tirx.BufferStore(leaders, tir.load(top, l), [l]), row.size),
        *row.fold(top, rows.maximum),
        row.fill(tau, -1.0),
        *head,
        row.fill(flag, 1.0),
        tirx.While(tir.load(flag, tir.i64(0)) > tir.f32(0.0), tir.seq(iteration)),
        row.sweep(finish),
    ]
