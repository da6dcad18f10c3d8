"""Sparsemax along any axis: the Euclidean projection of a row onto the probability simplex.

    sparsemax(x)_i = max(x_i - tau, 0),   tau such that the row sums to one

(Martins and Astudillo, "From Softmax to Sparsemax", 2016, eq. 2).  With z = x - max(x), tau is in [-1, 0) and

    tau = (sum of the z_i above tau - 1) / (how many they are)                                        (*)

which the definition finds by comparing every pair, and kernels by iterating (*) (Michelot, "A finite
algorithm for finding the projection of a point onto the canonical simplex of R^n", 1986), the case alpha = 2
of ``entmax``: started at or below the solution, it only ever drops elements, so it ends, and ends at the
exact support: when no element above the old tau is left out by the new one.  A row that holds NaN or +inf, or
nothing but -inf, is NaN throughout.
"""

from tvm import te, tirx

from sparsec.schedules import rows, tir
from sparsec.schedules.elementwise import keep_nan
from sparsec.schedules.entmax import AXIS


def sparsemax(shape: tuple[int, ...], axis: int = -1) -> tirx.PrimFunc:
    """The unscheduled definition ``(X, Y)``, both float32 of ``shape``."""
    axis = rows.normal_axis("sparsemax", axis, len(shape))
    x = te.placeholder(shape, "float32", "X")
    return rows.definition("sparsemax", [x, stages(x, shape, axis)], {AXIS: axis})


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
