"""Products of two activations, as in attention: the spec and the definition."""

import math
from dataclasses import dataclass

from tvm import te, tirx

from sparsec.schedules.contraction_spec import anchor, placeholder, reduce_axis


@dataclass(frozen=True)
class BatchMatmul:
    """``Y[*b, i, j] = sum_k A[*b, i, k] * B[*b, k, j]``, all float32.

    ``a_batch`` and ``b_batch`` are of one length and broadcast against each other (equal or 1).  An operand
    may be stored with its axes in another order: ``a_order[s]`` is the logical axis at stored position
    ``s``, so ``b_order=(0, 2, 1)`` is a transposed B with one batch axis, and ``(0, 2, 1, 3)`` reads or
    writes ``[batch, rows, heads, columns]`` where the logical order is ``[batch, heads, rows,
    columns]``.  Empty means the logical order."""

    a_batch: tuple[int, ...]
    b_batch: tuple[int, ...]
    m: int
    k: int
    n: int
    a_order: tuple[int, ...] = ()
    b_order: tuple[int, ...] = ()
    y_order: tuple[int, ...] = ()

    def __post_init__(self):
        paired = len(self.a_batch) == len(self.b_batch) and all(
            a == b or 1 in (a, b) for a, b in zip(self.a_batch, self.b_batch, strict=True)
        )
        if not paired:
            raise ValueError(
                f"BatchMatmul: required batch dims that broadcast, found {self.a_batch} and {self.b_batch}; "
                f"pad the shorter one with ones in front"
            )
        axes = tuple(range(len(self.a_batch) + 2))
        for name in ("a_order", "b_order", "y_order"):
            if getattr(self, name) and tuple(sorted(getattr(self, name))) != axes:
                raise ValueError(
                    f"BatchMatmul: required {name} to be an order of {axes}, found {getattr(self, name)}"
                )

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(max(a, b) for a, b in zip(self.a_batch, self.b_batch, strict=True))

    @property
    def a_shape(self) -> tuple[int, ...]:
        return stored((*self.a_batch, self.m, self.k), self.a_order)

    @property
    def b_shape(self) -> tuple[int, ...]:
        return stored((*self.b_batch, self.k, self.n), self.b_order)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return stored((*self.batch, self.m, self.n), self.y_order)

    @property
    def batches(self) -> int:
        return math.prod(self.batch)

    @property
    def b_by_columns(self) -> bool:
        """Whether neighbours in memory of B are neighbours along k, as in a transposed B."""
        return bool(self.b_order) and self.b_order[-1] == len(self.batch)

    def a_index(self, batch, i, k) -> list:
        """Stored coordinates of logical ``A[*batch, i, k]``."""
        return stored([*clamp(batch, self.a_batch), i, k], self.a_order)

    def b_index(self, batch, k, j) -> list:
        return stored([*clamp(batch, self.b_batch), k, j], self.b_order)

    def y_index(self, batch, i, j) -> list:
        return stored([*batch, i, j], self.y_order)

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled function ``(A, B, Y)`` over the stored shapes."""
        a, b = placeholder(self.a_shape, "float32", "A"), placeholder(self.b_shape, "float32", "B")
        k = reduce_axis(self.k, "k")

        def value(*at):
            order = self.y_order or range(len(at))
            logical = [at[list(order).index(axis)] for axis in range(len(at))]
            *batch, i, j = logical
            return te.sum(a[tuple(self.a_index(batch, i, k))] * b[tuple(self.b_index(batch, k, j))], axis=[k])

        return anchor(self, [a, b], self.y_shape, value)


def stored(logical, order: tuple[int, ...]):
    """``logical``, one entry per axis, in stored order."""
    return type(logical)(logical[axis] for axis in order) if order else logical


def clamp(batch, dims: tuple[int, ...]) -> list:
    """Batch coordinates within an operand whose unit dims are broadcast."""
    return [0 if d == 1 else i for i, d in zip(batch, dims, strict=True)]
