"""The kernel of the *strips* form: lanes over rows, one broadcast weight for many of them.

A task takes a block of rows and turns what it reads, block by block of the input, into a panel whose lanes
are rows; then every slot of a strip is ``acc[channel] += weight[channel] * panel[position]``.  Sums that wait
for the next block of the input lie as they were computed, and are turned back to row-major squares at the
end, where the epilogue meets them.

A convolution reads its window's taps into the panel, zeros beyond the border; so strides, dilations and pads
cost nothing later.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_epilogue import Epilogue
from sparsec.schedules.contraction_tile import Tile, even_split, pieces
from sparsec.schedules.layout_strips import CHANNELS, Strips
from sparsec.schedules.target import Cpu
from sparsec.schedules.transpose import transpose

#: Vectors of rows whose sums a strip of one channel keeps in registers.
MOST_VECTORS = 8
#: Sums in flight that hide the latency of a multiply-add.
IN_FLIGHT = 8
#: Weights between the slot in work and the one that is asked for: they stream, but a page ends the stream.
AHEAD = 256
#: Tasks that keep the cores busy; each block of rows is turned once for every task on it.
TASKS = 8


@dataclass(frozen=True)
class Rows:
    """Where the activations of output row ``row`` lie: ``at(row, tap) -> (coordinates in X, is it inside)``.

    The coordinates lack the channel, and are those of some pixel of X even where the tap lies outside;
    "inside" is None where it always does.
    """

    lead: tuple[int, ...]
    count: int
    at: Callable


def strips_body(
    cpu: Cpu,
    strips: Strips,
    groups: int,
    own: int,
    rows: Rows,
    x: tir.Buffer,
    weights: list[tir.Buffer],
    epilogue: Epilogue,
) -> tir.Stmt:
    """``groups`` products of ``own`` output channels each; ``strips`` holds all of them, filled up."""
    lanes = min(cpu.lanes, CHANNELS)
    # Beside the sums of a slot's channels there are its activations and a broadcast weight.
    if strips.width == 1:
        most = MOST_VECTORS
    else:
        most = min(4, (cpu.registers - 1) // (strips.width + 1))

    def unroll(vectors: int) -> int:
        """Slots in work at once, each with sums of its own, that the registers hold; a divisor of a run."""
        sums = strips.width * vectors
        if sums >= IN_FLIGHT:
            return 1
        return max(
            u for u in (1, 2, 4) if strips.unroll % u == 0 and (u == 1 or u * sums + 2 <= cpu.registers)
        )

    def part_body(start: int, repeats: int, vectors: int) -> tir.Stmt:
        block = vectors * lanes * 4
        fitting = (
            1 if strips.blocks == 1 else -(-strips.count * strips.width // groups * block // (cpu.l2 // 2))
        )
        panels = strips.count * strips.width // groups // CHANNELS
        shares = min(panels, max(fitting, -(-TASKS // (repeats * groups))))
        tasks = repeats * groups * shares

        def task(t):
            r, group, share = tir.unflatten(t, (repeats, groups, shares))
            low, high = (tirx.floordiv((share + end) * panels, tir.i64(shares)) for end in (0, 1))
            row = (start + r * vectors) * lanes
            most_panels = -(-panels // shares)
            shape = (lanes, vectors, unroll(vectors))
            kernel = _Task(strips, groups, own, rows, x, weights, epilogue, *shape, row, group)
            return kernel.body(low, high, most_panels)

        return tir.loop("task", tasks, task, "PARALLEL" if tasks > 1 else "SERIAL")

    return tir.seq(part_body(*part) for part in even_split(-(-rows.count // lanes), most))


@dataclass(frozen=True)
class _Task:
    """``vectors`` vectors of rows from ``row`` on, of one ``group``."""

    strips: Strips
    groups: int
    own: int
    rows: Rows
    x: tir.Buffer
    weights: list[tir.Buffer]
    epilogue: Epilogue
    lanes: int
    vectors: int
    unroll: int
    row: tir.Expr
    group: tir.Expr

    @property
    def group_panels(self) -> int:
        """16 channels make a panel here, too."""
        return self.strips.count * self.strips.width // CHANNELS // self.groups

    def body(self, low, high, most_panels: int) -> tir.Stmt:
        """The group's panels of channels from ``low`` to ``high``, at most ``most_panels`` of them."""
        blocks, width = self.strips.blocks, self.vectors * self.lanes
        kept = most_panels if blocks > 1 else 1
        panel = tirx.decl_buffer([tir.i64(self.strips.most_inputs), tir.i64(width)], "float32", "panel")
        sums = tirx.decl_buffer([tir.i64(kept * CHANNELS), tir.i64(width)], "float32", "sums")

        def block(b, fresh: bool, last: bool):
            def channels(p):
                own = p - low if blocks > 1 else tir.i64(0)
                base = (self.group * self.group_panels + p) * (CHANNELS // self.strips.width)
                run = tir.loop(
                    "strip",
                    CHANNELS // self.strips.width,
                    lambda s: self.strip(
                        panel, sums, b, base + s, own * CHANNELS + s * self.strips.width, fresh
                    ),
                )
                return tir.seq([run, self.finish(sums, own * CHANNELS, p)] if last else [run])

            return tir.seq([self.turn(panel, b), tir.loop("p", high - low, channels, start=low)])

        stmts = tir.alloc([panel, sums])
        if blocks == 1:
            return tir.seq([*stmts, block(tir.i64(0), True, True)])
        between = tir.loop("b", blocks - 2, lambda b: block(b, False, False), start=1) if blocks > 2 else None
        stmts += [block(tir.i64(0), True, False), *([between] if between is not None else [])]
        return tir.seq([*stmts, block(tir.i64(blocks - 1), False, True)])

    # The panel -------------------------------------------------------------------------------------

    def turn(self, panel: tir.Buffer, b) -> tir.Stmt:
        """``panel[input, lane]`` of block ``b``, row-major activations turned square by square."""
        strips = self.strips
        tap, channel = strips.first(b)
        taps = _least(strips.block_taps, tir.i64(strips.taps) - tap) if strips.taps > 1 else 1
        depth = strips.channels
        if strips.parts > 1:
            last = tirx.EQ(channel, tir.i64((strips.parts - 1) * strips.part))
            depth = tirx.Select(last, tir.i64(strips.rest), tir.i64(strips.part))

        def one_tap(t):
            make = self.turn_slowly if strips.channels < self.lanes else self.turn_squares
            return tir.loop(
                "r",
                self.vectors,
                lambda r: make(panel, r * self.lanes, tap + t, channel, depth, t * strips.channels),
            )

        return tir.loop("tap", taps, one_tap)

    def source(self, lane, tap) -> tuple[list, tir.Expr | None]:
        row = tirx.min(self.row + lane, tir.i64(self.rows.count - 1))
        return self.rows.at(row, tap)

    def turn_squares(self, panel: tir.Buffer, lane, tap, channel, depth, at) -> tir.Stmt:
        lanes = self.lanes
        sources = [self.source(lane + i, tap) for i in range(lanes)]
        first = self.group * self.strips.channels + channel
        # The last square may repeat inputs of the one before, so that no channel count is special.
        last = depth - lanes if isinstance(depth, int) else depth - tir.i64(lanes)

        def square(c):
            c = tirx.min(c * lanes, last if not isinstance(last, int) else tir.i64(last))

            def load(i):
                at, inside = sources[i]
                value = tir.vector_load(self.x, *at, first + c, lanes=lanes)
                if inside is None:
                    return value
                return tirx.Select(inside, value, tir.broadcast(tir.f32(0.0), lanes))

            return _turned(
                lanes, load, lambda i, v: tir.vector_store(panel, v, at + c + i, lane, lanes=lanes)
            )

        count = (
            -(-depth // lanes)
            if isinstance(depth, int)
            else tirx.floordiv(depth + (lanes - 1), tir.i64(lanes))
        )
        return tir.loop("c", count, square)

    def turn_slowly(self, panel: tir.Buffer, lane, tap, channel, depth, at) -> tir.Stmt:
        """Fewer channels than lanes: one value at a time."""

        def copy(i, c):
            index, inside = self.source(lane + i, tap)
            value = tir.load(self.x, *index, self.group * self.strips.channels + channel + c)
            if inside is not None:
                value = tirx.Select(inside, value, tir.f32(0.0))
            return tirx.BufferStore(panel, value, [at + c, lane + i])

        return tir.loop("i", self.lanes, lambda i: tir.loop("c", depth, lambda c: copy(i, c)))

    # The sums --------------------------------------------------------------------------------------

    def strip(self, panel: tir.Buffer, sums: tir.Buffer, b, strip, at, fresh: bool) -> tir.Stmt:
        """Adds block ``b`` of one strip to ``sums[at:at + width]``."""
        strips, lanes, unroll = self.strips, self.lanes, self.unroll
        values, position, start = self.weights
        tile = Tile(lanes, strips.width * unroll, self.vectors * lanes)
        run = b * strips.count + strip
        begin, end = tir.var("begin"), tir.var("end")

        def step(s):
            stmts = []
            for u in range(unroll):
                slot = begin + s * unroll + u
                at = tir.var(f"at{u}")
                stmts.append(tirx.Bind(at, tir.load(position, slot).astype("int64")))
                if u == 0:
                    stmts.append(tir.prefetch(values, slot + AHEAD // strips.width, tir.i64(0)))
                stmts.append(
                    tile.multiply_add(
                        lambda r, _, slot=slot: tir.load(values, slot, tir.i64(r % strips.width)),
                        lambda v, at=at: tir.vector_load(panel, at, tir.i64(v), lanes=lanes),
                        span=tile.columns,
                        chosen=range(u * strips.width, (u + 1) * strips.width),
                    )
                )
            return tir.seq(stmts)

        def each(do):
            return [do(c, v) for c in range(strips.width) for v in tile.vectors()]

        def resume(c, v):
            value = tir.vector_load(sums, at + c, tir.i64(v), lanes=lanes)
            return tir.vector_store(tile.acc[c], value, tir.i64(v), lanes=lanes)

        def wait(c, v):
            value = tir.vector_load(tile.acc[c], tir.i64(v), lanes=lanes)
            for u in range(1, unroll):
                value = value + tir.vector_load(tile.acc[u * strips.width + c], tir.i64(v), lanes=lanes)
            return tir.vector_store(sums, value, at + c, tir.i64(v), lanes=lanes)

        steps = tirx.floordiv(end - begin, tir.i64(unroll))
        return tir.seq(
            [
                tirx.Bind(begin, tir.load(start, run).astype("int64")),
                tirx.Bind(end, tir.load(start, run + 1).astype("int64")),
                *tile.allocate(),
                *tile.zero(),
                *([] if fresh else each(resume)),
                tir.loop("s", steps, step),
                *each(wait),
            ]
        )

    def finish(self, sums: tir.Buffer, at, p) -> tir.Stmt:
        """Turns 16 channels of ``sums`` from ``at`` on, in place, and stores them through the epilogue."""
        rest = self.own % CHANNELS
        last = self.group_panels - 1

        def squares(columns: int) -> tir.Stmt:
            return tir.seq(
                tir.loop(
                    "r",
                    self.vectors,
                    lambda r, c=c: self.square(sums, at + c, r * self.lanes, p, c, columns - c),
                )
                for c in range(0, columns, self.lanes)
            )

        if not rest:
            return squares(CHANNELS)
        if last == 0:
            return squares(rest)
        return tirx.IfThenElse(tirx.EQ(p, tir.i64(last)), squares(rest), squares(CHANNELS))

    def square(self, sums: tir.Buffer, at, lane, p, c: int, columns: int) -> tir.Stmt:
        lanes = self.lanes
        turned = _turned(
            lanes,
            lambda i: tir.vector_load(sums, at + i, lane, lanes=lanes),
            lambda i, v: tir.vector_store(sums, v, at + i, lane, lanes=lanes),
        )
        channel = self.group * self.own + p * CHANNELS + c

        def row_body(i):
            index = tir.unflatten(self.row + lane + i, self.rows.lead)

            def piece(off, width):
                def body(v):
                    value = tir.load(sums, at + i, lane + off + v)
                    return tir.seq(self.epilogue.stores([*index, channel + off + v], value))

                return tir.vector_loop(width, body)

            return tir.seq(piece(off, width) for off, width in pieces(min(columns, lanes), lanes))

        count = (
            _least(lanes, tir.i64(self.rows.count) - self.row - lane) if self.rows.count % lanes else lanes
        )
        return tir.seq([turned, tir.loop("i", count, row_body)])


def _least(most: int, left: tir.Expr) -> tir.Expr:
    return tirx.min(tir.i64(most), left)


def _turned(size: int, load: Callable, store: Callable) -> tir.Stmt:
    """``store(i, column i)`` of the square whose rows are ``load(i)``; all loads come before the stores."""
    stmts = []

    def bind(value):
        name = tirx.Var(f"s{len(stmts)}", value.ty)
        stmts.append(tirx.Bind(name, value))
        return name

    columns = transpose([bind(load(i)) for i in range(size)], bind)
    return tir.seq([*stmts, *(store(i, column) for i, column in enumerate(columns))])
