"""The kernel of sparsemax and entmax on CPUs: the threshold of a row without a sort and without scratch.

Maximum; the steps of ``entmax`` to tau, each a sweep over the row in cache; the shares.  Sparsemax ends when
a step has left out no element that was above the old tau: then the support, and so tau, is exact.  Entmax
ends when a step is too small for its error, which is of second order, to be seen.
"""

from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import math, rows, tir
from sparsec.schedules.entmax import ALPHA, AXIS, Powers, last_step, positive
from sparsec.schedules.target import Cpu

_COST = 12
_LEADER_STEPS = 3
_ZERO, _ONE = tir.f32(0.0), tir.f32(1.0)


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """The kernel of a definition of ``sparsemax`` or ``entmax``."""
    if not rows.is_op(func, "sparsemax", "entmax"):
        return None
    x, y = func.params
    alpha = float(func.attrs[ALPHA]) if ALPHA in func.attrs else 2.0
    return rows.kernel(func, int(func.attrs[AXIS]), 1, _COST, cpu, lambda row: project(row, x, y, alpha))


def project(row: rows.Row, x: tir.Buffer, y: tir.Buffer, alpha: float) -> list[tir.Stmt]:
    """The statements that put entmax of the rows at hand of ``x`` into ``y``; with ``alpha`` 2 sparsemax.

    ``y`` may be ``x`` itself where the rows have no tail.
    """
    powers = Powers(alpha, math.exp_not_positive)
    names = ("top", "mass", "slopes", "tau", "step", "least", "more", "flag", "leaders", "over", "power")
    buffers = [row.state(n) for n in names]
    top, mass, slopes, tau, step, least, more, flag, leaders, over, power = buffers

    def element(place, l):
        return tir.load(x, *place.index(l))

    def own(place, buffer, l):
        return tir.load(buffer, tir.i64(place.slot * row.lanes) + l)

    def leader(place, l):
        return own(place, leaders, l)

    def keep(place, buffer, value: Callable):
        return row.vector(lambda l: tirx.BufferStore(buffer, value(l), [tir.i64(place.slot * row.lanes) + l]))

    def find_top(place):
        # Each element is in one lane only: the leaders' sums must not count one twice.
        def value(l):
            return place.only_fresh(l, element(place, l), tir.f32(float("-inf")))

        yield row.fold_in(top, place, value, rows.maximum)

    def raised(place, value: Callable):
        """Puts v of ``value(place, l)`` into ``over`` and v^(p-1), by which it counts, into ``power``."""

        def above(l):
            z = value(place, l) - row.get(top, l, place.row)
            v = (z if alpha == 2 else z * tir.f32(powers.scale)) - row.get(tau, l, place.row)
            return tirx.Select(v < _ZERO, _ZERO, v)  # one maximum, which NaN passes

        yield keep(place, over, above)
        source = over
        for function in powers.slope:
            yield keep(place, power, lambda l, f=function, b=source: f(own(place, b, l)))
            source = power

    def share(place, l):
        return own(place, over, l) * own(place, power, l)

    def slope(place, l):
        # Of 0 every other power than the 0th is 0.
        return own(place, power, l) if alpha < 2 else positive(own(place, over, l), _ONE)

    def add_up(place, value: Callable):
        yield from raised(place, value)
        for sums, term in ((mass, share), (slopes, slope)):
            yield row.fold_in(
                sums, place, lambda l, term=term: place.only_fresh(l, term(place, l), _ZERO), rows.add
            )

    def gather(place):
        yield from row.ahead(x, place)
        yield from add_up(place, element)
        if alpha == 2:

            def smallest(l):
                v = own(place, over, l)
                return tirx.Select(v <= _ZERO, tir.f32(float("inf")), v)

            yield row.fold_in(least, place, smallest, rows.minimum)

    def advance(sweep: tir.Stmt):
        """Moves the tau of rows that need it, by the sums that ``sweep`` makes."""

        def by(l, r):
            moved = (row.get(mass, l, r) - row.get(step, l, r)) / row.get(slopes, l, r)
            return tirx.Select(row.get(more, l, r) > _ZERO, moved, _ZERO)

        stmts = [
            row.fill(mass, 0.0),
            row.fill(slopes, 0.0),
            sweep,
            *row.fold(mass, rows.add),
            *row.fold(slopes, rows.add),
        ]
        source = mass
        for function in powers.damped:
            stmts += row.set(step, lambda l, r, f=function, b=source: f(row.get(b, l, r)))
            source = step
        return [
            *stmts,
            *row.set(step, by),
            *row.set(tau, lambda l, r: row.get(tau, l, r) + row.get(step, l, r)),
        ]

    def unfinished(l, r):
        moved = row.get(step, l, r)
        dropped = (
            row.get(least, l, r) <= moved if alpha == 2 else moved > tir.f32(last_step(alpha, row.extent))
        )
        return tirx.Select(dropped, _ONE, _ZERO)

    def finish(place):
        yield from raised(place, element)
        yield row.put(lambda l: tirx.BufferStore(y, share(place, l), place.index(l)))

    iteration = [
        row.fill(least, float("inf")),
        *advance(row.sweep(gather)),
        *row.fold(least, rows.minimum),
        *row.set(more, unfinished),
        *row.set(flag, lambda l, r: row.get(more, l, r)),
        *row.fold_rows(flag, rows.add),
    ]

    # The largest of each lane alone give a good lower bound of tau, without another look at the row.
    head = []
    if row.along and row.extent >= 2 * row.lanes:
        stmts = advance(row.states(lambda place: add_up(place, leader)))
        head = [tir.loop("leaders", _LEADER_STEPS, lambda _: tir.seq(stmts))]
    return [
        *tir.alloc(buffers),
        row.fill(top, float("-inf")),
        row.sweep(find_top),
        row.vector(lambda l: tirx.BufferStore(leaders, tir.load(top, l), [l]), row.size),
        *row.fold(top, rows.maximum),
        row.fill(tau, -1.0),
        row.fill(more, 1.0),
        row.fill(flag, 1.0),
        *head,
        tirx.While(tir.load(flag, tir.i64(0)) > _ZERO, tir.seq(iteration)),
        row.sweep(finish),
    ]
