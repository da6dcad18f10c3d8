"""Maps: chains of elementwise operators, broadcasts, copies, gathers, pads, concatenations, casts.

One store per element, no order between elements.  The innermost run of contiguous addresses becomes vectors;
a condition on it (the border of a pad, the seam of a concatenation) cuts it into pieces that have none.
"""

from dataclasses import dataclass, replace

import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import access, math, stream, tir, vector
from sparsec.schedules.access import Nest
from sparsec.schedules.target import Cpu

#: Nodes of an expression that take about as long as moving one element through the first-level cache.
_CHEAP = 4

#: Rows of a transposed block: as many as a cache line holds float32 values.
_BLOCK = 16
_COSTLY = {"exp", "log", "log2", "log10", "log1p", "tanh", "erf", "sigmoid", "pow", "sqrt", "rsqrt"}
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def cost(expr) -> int:
    """About how many instructions one element takes."""
    total = 0

    def visit(node):
        nonlocal total
        total += 1
        if isinstance(node, ir.Call) and getattr(node.op, "name", "").rpartition(".")[2] in _COSTLY:
            total += 20
        elif isinstance(node, tirx.Div):
            total += 4

    tvm_ffi.structural_walk(expr, (ir.Expr, visit))
    return max(1, total // _CHEAP)


def keep_nan(expr):
    """``expr`` with maxima and minima of floats that give NaN where either side is NaN, as ONNX Runtime does.

    TVM's own ``max(x, 0)`` gives 0 for NaN.  With a constant on one side the price is nothing.
    """

    def visit(node, mutator):
        a, b = mutator.mutate(node.a), mutator.mutate(node.b)
        if str(node.ty.dtype) not in ("float32", "float64"):
            return type(node)(a, b)
        return math.maximum(a, b) if isinstance(node, tirx.Max) else math.minimum(a, b)

    return tvm_ffi.structural_mutate(expr, [((tirx.Max, tirx.Min), visit)])


def why_not(nest: Nest) -> str | None:
    if nest.reduce:
        return "it reduces"
    if any(load.source.same_as(nest.buffer) for load in nest.loads()):
        return "it reads what it writes"
    return None


def emit(nest: Nest, cpu: Cpu) -> tir.Stmt:
    """The vectorised loops of a map; ``why_not(nest)`` must be None."""
    work = nest.volume * cost(nest.value)
    nest, table = access.merge(nest)
    if not nest.spatial:
        return tirx.BufferStore(nest.buffer, keep_nan(nest.value), list(nest.index))
    lane = _lane(nest, table)
    variable, extent = nest.spatial[lane]
    outer = nest.spatial[:lane] + nest.spatial[lane + 1 :]
    dtypes = {tir.dtype_of(nest.buffer), *(tir.dtype_of(l.source) for l in nest.loads())}
    pieces = [
        _Piece(nest, variable, start, end, vector.lanes_for(cpu, dtypes, end - start), False)
        for start, end in _pieces(nest, variable, extent)
    ]
    streamed = stream.pays(nest.buffer, cpu) and _aligned(nest, table, variable, pieces, cpu.lanes)
    if streamed:
        pieces = [replace(piece, streamed=True) for piece in pieces]
    # Threads share the outer loops; a single long loop is cut into runs of steps for them.
    runs = 1
    if len(pieces) == 1 and work >= vector.PARALLEL_WORK:
        runs = max(1, min(64, pieces[0].steps.count // 32) * extent // max(extent, nest.volume))

    turned = _turned(table, variable, outer)
    blocks = [vector.Steps(e, min(_BLOCK, vector.power_below(e)) if v in turned else 1) for v, e in outer]

    def at(indices):
        *rest, run = indices
        first = [b.start(i) for b, i in zip(blocks, rest, strict=True)]
        corner = [(v, i, b.width) for (v, _), i, b in zip(outer, first, blocks, strict=True)]
        return tir.seq(piece.loops(corner, run, runs) for piece in pieces)

    loops = vector.spread((*(b.count for b in blocks), runs), work, at)
    return stream.imported(loops, cpu.lanes, fence=True) if streamed else loops


def _aligned(nest: Nest, table: list[dict], variable, pieces: list, lanes: int) -> bool:
    """Whether every vector of the store is a whole one at a multiple of its size."""
    first = access.analyzer(nest.dims).simplify(
        access.offset(
            nest.buffer, [tir.rewrite(i, {v: tir.i64(0) for v, _ in nest.dims}) for i in nest.index]
        )
    )
    steps = [step for v, step in table[0].items() if not v.same_as(variable)]
    return (
        table[0][variable] == 1
        and lanes >= 8
        and isinstance(first, tirx.IntImm)
        and all(s is not None and s % lanes == 0 for s in [int(first.value), *steps])
        and all(p.lanes == lanes and p.start % lanes == 0 and p.end % lanes == 0 for p in pieces)
    )


def _turned(table: list[dict], lane, outer) -> set:
    """The outer loop along which a load is contiguous that is not so along the lanes: a transpose.

    Taken in blocks, it reads every cache line once for all the rows that it holds.
    """
    for row in table[1:]:
        if row[lane] not in (0, 1):
            for variable, extent in outer:
                if row[variable] == 1 and extent > 1:
                    return {variable}
    return set()


def _lane(nest: Nest, table: list[dict]) -> int:
    """The loop to vectorise: where the most accesses are contiguous or constant, the store first."""

    def score(position: int):
        variable, extent = nest.spatial[position]
        steps = [row[variable] for row in table]
        return (extent >= 4, steps[0] == 1, sum(s in (0, 1) for s in steps), position)

    return max(range(len(nest.spatial)), key=score)


def _pieces(nest: Nest, variable, extent: int) -> list[tuple[int, int]]:
    """The loop cut where a condition on its variable alone changes its answer."""
    cuts = {0, extent}
    ana = access.analyzer(nest.dims)
    for condition in access.collect(nest.value, _COMPARISONS):
        if not str(condition.a.ty.dtype).startswith("int") or not access.uses(condition, variable):
            continue
        difference = ana.simplify(condition.a - condition.b)
        step = access.stride(ana, difference, variable)
        base = ana.simplify(tir.rewrite(difference, {variable: tirx.const(0, variable.ty)}))
        if step in (1, -1) and isinstance(base, tirx.IntImm):
            root = -int(base.value) * step
            cuts |= {c for c in (root, root + 1) if 0 < c < extent}
    if len(cuts) > 10:
        return [(0, extent)]
    return _rejoin(nest, variable, sorted(cuts))


def _rejoin(nest: Nest, variable, cuts: list[int]) -> list[tuple[int, int]]:
    """Neighbouring pieces with the same simplified value are one piece."""
    pieces, last = [], None
    for start, end in zip(cuts, cuts[1:], strict=False):
        value = _simplified(nest, variable, start, end)
        if last is not None and tvm_ffi.structural_equal(value, last):
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((start, end))
        last = value
    return pieces


def _simplified(nest: Nest, variable, start: int, end: int):
    ana = access.analyzer([d for d in nest.dims if not d[0].same_as(variable)])
    ana.bind(variable, ir.Range(tirx.const(start, variable.ty), tirx.const(end, variable.ty)))
    return ana.simplify(nest.value)


@dataclass(frozen=True)
class _Piece:
    """``variable`` from ``start`` to ``end``, where no condition depends on it.

    ``streamed``: the results go past the caches.
    """

    nest: Nest
    variable: ir.Var
    start: int
    end: int
    lanes: int
    streamed: bool

    @property
    def steps(self) -> vector.Steps:
        return vector.Steps(self.end - self.start, self.lanes)

    def loops(self, corner: list, run, runs: int) -> tir.Stmt:
        """The steps of one of ``runs`` equal shares; shares may overlap by a few steps.

        ``corner`` says per outer loop where to start and how far to go: ``(variable, start, width)``.
        """
        value = keep_nan(_simplified(self.nest, self.variable, self.start, self.end))
        share = vector.Steps(self.steps.count, -(-self.steps.count // runs))
        first = share.start(run)

        def step(s):
            base = self.steps.start(first + s) + tir.i64(self.start)

            def vectors(within):
                outer = {v: i + w for (v, i, _), w in zip(corner, within, strict=True)}

                def element(l):
                    mapping = {**outer, self.variable: base + l}
                    index = [tir.rewrite(i, mapping) for i in self.nest.index]
                    return tirx.BufferStore(self.nest.buffer, tir.rewrite(value, mapping), index)

                loop = stream.vector_loop if self.streamed else tir.vector_loop
                return loop(self.lanes, element)

            return vector.nest_loops([(v, width) for v, _, width in corner], vectors)

        return tir.loop("s", share.width, step)
