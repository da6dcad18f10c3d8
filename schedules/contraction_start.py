"""What sums begin with where products of signed bytes leave out a multiple of the weights."""

from collections.abc import Callable

from sparsec.schedules import quads, tir
from sparsec.schedules.contraction_tile import Tile
from sparsec.schedules.target import Cpu


def start_of(
    cpu: Cpu, lanes: int, columns: int, count: int, weight: Callable, each: bool = False
) -> tuple[tir.Buffer, list[tir.Stmt]]:
    """int32 ``[columns]`` and the statements that fill it: for each channel the part that is left out.

    ``weight(k)(v)`` is the vector at channel ``v`` of the words ``k``, of which there are ``count``.
    ``each``: as in ``quads.multiply_add``.
    """
    tile = Tile(lanes, 1, columns, "int32")
    start = tir.scratch("start", columns, dtype="int32")

    def add(k) -> tir.Stmt:
        product = lambda total, _, w: quads.weight_sum(cpu, total, w, each)  # noqa: E731
        return tile.multiply_add(lambda r, v: tir.i32(0), weight(k), columns, product=product)

    def scale(v: int) -> tir.Stmt:
        total = tir.vector_load(tile.acc[0], tir.i64(v), lanes=lanes)
        up = tir.broadcast(tir.i32(quads.SIGNED_BITS), lanes)
        return tir.vector_store(start, total << up, tir.i64(v), lanes=lanes)

    sums = [*tile.allocate(), *tile.zero(), tir.loop("w", count, add), *map(scale, tile.vectors())]
    return start, [*tir.alloc([start]), *sums]


def begin(tile: Tile, start: tir.Buffer | None) -> list[tir.Stmt]:
    """Sets the sums of every row to ``start``, else to 0."""
    return tile.zero() if start is None else tile.restore(start, lambda r, c: [c], tile.columns)
