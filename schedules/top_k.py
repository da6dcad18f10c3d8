"""The k largest or smallest elements along an axis, in order (ONNX operator TopK; with k the extent, a sort).

A heap of the k best so far, worst on top, grows in the output itself; then the heap is sorted in place.  So a
row of n elements takes n log k steps and no scratch.  Equal values keep the lower index first.  A NaN is
never better than another element; where it ends up is not defined, as in ONNX Runtime.
"""

from math import prod

from tvm import tirx

from sparsec.schedules import rows, tir, vector

_COST = 8


def top_k(shape: tuple[int, ...], dtype: str, axis: int, k: int, largest: bool = True) -> tirx.PrimFunc:
    """The function ``(X, values, indices)``, ready to build; ``k`` elements on ``axis``.

    ``X`` and ``values`` are ``dtype``, ``indices`` int64.  ValueError unless ``1 <= k <= shape[axis]``.
    """
    axis = rows.normal_axis("top_k", axis, len(shape))
    extent = shape[axis]
    if not 1 <= k <= extent:
        raise ValueError(
            f"top_k: required k from 1 to {extent}, the extent of axis {axis}, found {k}; correct k"
        )
    lead, tail = shape[:axis], shape[axis + 1 :]
    best = (*lead, k, *tail)
    x, values = (
        tirx.decl_buffer([tir.i64(d) for d in s], dtype, name=name)
        for s, name in ((shape, "X"), (best, "values"))
    )
    indices = tirx.decl_buffer([tir.i64(d) for d in best], "int64", name="indices")

    def row(where):
        at = _Row(
            x, values, indices, *(tir.unflatten(w, d) for w, d in zip(where, (lead, tail), strict=True))
        )
        return at.top(extent, k, largest)

    body = vector.spread((prod(lead), prod(tail)), prod(shape) * _COST, row)
    attrs = {tir.NOALIAS: True, tir.SCHEDULED: True, tir.OP_PATTERN: tir.OPAQUE, "s_tir": True}
    attrs |= {rows.OP: "top_k", "sparsec.axis": axis, "sparsec.largest": largest}
    return tirx.PrimFunc([x, values, indices], body).with_attrs(attrs)


class _Row:
    """One row's heap: slot s holds a value and its index; the children of s are 2s + 1 and 2s + 2."""

    def __init__(self, x, values, indices, before: list, after: list):
        self.x, self.values, self.indices = x, values, indices
        self.before, self.after = before, after
        # Where the element on its way down stands, where it goes next, and what it is.
        self.slot, self.child, self.index = (vector.stack(n, 1, "int64") for n in ("slot", "child", "index"))
        self.value = vector.stack("value", 1, tir.dtype_of(x))

    def at(self, slot) -> list:
        return [*self.before, slot, *self.after]

    def entry(self, slot):
        return tir.load(self.values, *self.at(slot)), tir.load(self.indices, *self.at(slot))

    def put(self, slot, entry) -> list[tir.Stmt]:
        value, index = entry
        return [
            tirx.BufferStore(self.values, value, self.at(slot)),
            tirx.BufferStore(self.indices, index, self.at(slot)),
        ]

    def better(self, a, b):
        ahead = a[0] > b[0] if self.largest else a[0] < b[0]
        return tirx.Or(ahead, tirx.And(tirx.EQ(a[0], b[0]), a[1] < b[1]))

    def top(self, extent: int, k: int, largest: bool) -> tir.Stmt:
        self.largest = largest

        def fill(i):
            return tir.seq(self.put(i, (tir.load(self.x, *self.at(i)), i)))

        def settle(i):
            slot = tir.i64(k // 2 - 1) - i
            return self.sink(slot, self.entry(slot), tir.i64(k))

        def offer(i):
            new = (tir.load(self.x, *self.at(i)), i)
            sunk = self.sink(tir.i64(0), new, tir.i64(k))
            return tirx.IfThenElse(self.better(new, self.entry(tir.i64(0))), sunk, None)

        def retire(i):
            # The worst goes to the end, the element from there finds its place in the rest.
            last = tir.i64(k - 1) - i
            carried = [
                tirx.BufferStore(self.value, self.entry(last)[0], [tir.i64(0)]),
                tirx.BufferStore(self.index, self.entry(last)[1], [tir.i64(0)]),
            ]
            return tir.seq(
                [*carried, *self.put(last, self.entry(tir.i64(0))), self.sink(tir.i64(0), None, last)]
            )

        stmts = [*tir.alloc([self.slot, self.child, self.index, self.value]), tir.loop("i", k, fill)]
        if k > 1:
            stmts.append(tir.loop("i", k // 2, settle))
        if extent > k:
            stmts.append(tir.loop("i", extent - k, offer, start=k))
        if k > 1:
            stmts.append(tir.loop("i", k - 1, retire))
        return tir.seq(stmts)

    def sink(self, start, new, size) -> tir.Stmt:
        """Puts ``new`` (None: what is in ``value``) at ``start`` or below, in a heap of ``size``."""
        zero = tir.i64(0)
        slot, child = tir.load(self.slot, zero), tir.load(self.child, zero)
        moving = tir.load(self.value, zero), tir.load(self.index, zero)
        right = child + tir.i64(1)
        beside = self.better(self.entry(child), self.entry(right))
        pick = tirx.IfThenElse(
            tirx.if_then_else(right < size, beside, tirx.const(False, "bool")),
            tirx.BufferStore(self.child, right, [zero]),
            None,
        )
        down = tirx.IfThenElse(
            self.better(moving, self.entry(child)),
            tir.seq(
                [
                    *self.put(slot, self.entry(child)),
                    tirx.BufferStore(self.slot, child, [zero]),
                    tirx.BufferStore(self.child, child * tir.i64(2) + tir.i64(1), [zero]),
                ]
            ),
            tirx.BufferStore(self.child, size, [zero]),
        )
        keep = []
        if new is not None:
            keep = [
                tirx.BufferStore(self.value, new[0], [zero]),
                tirx.BufferStore(self.index, new[1], [zero]),
            ]
        return tir.seq(
            [
                *keep,
                tirx.BufferStore(self.slot, start, [zero]),
                tirx.BufferStore(self.child, start * tir.i64(2) + tir.i64(1), [zero]),
                tirx.While(child < size, tir.seq([pick, down])),
                *self.put(slot, moving),
            ]
        )
