"""How a contraction is cut into register tiles and tasks: chosen by counting, never by measuring."""

import math
from dataclasses import dataclass

from sparsec.schedules.contraction_tile import even_split
from sparsec.schedules.elements import FLOAT32, INT8, Element
from sparsec.schedules.lane_words import reach
from sparsec.schedules.layout import PANEL, WINDOW, Pattern
from sparsec.schedules.target import LINE, Cpu

#: Multiply-adds in flight that hide the latency of one, on two ports of four cycles.
IN_FLIGHT = 8
#: The first-level cache: sets, ways of the smallest one sold with AVX2 or AVX-512.
CACHE_SETS, CACHE_WAYS = 64, 8
#: Tasks that keep the cores busy, and the least rows of a task that is made only for that.
TASKS, TASK_ROWS = 16, 48
#: Instructions that put a word together of so many activations that lie apart; a float is a word itself.
ASSEMBLED = {1: 0, 2: 4, 4: 10}
#: What it takes to put a window of 16 bytes into every quarter of a vector, in multiply-adds.
REPEATED = 0.8
#: What it takes to look up a word with others, and to change its signs.
LOOKED_UP = 0.5
#: Registers that a lookup takes: where it looks, and for what.
IN_TABLE = 3
#: Panels that a tile may span.  The first of equals wins: two share a broadcast and leave many rows.
PANEL_CHOICES = (2, 1, 3, 4, 6, 8)
#: The same for a single row that permutes: memory limits it, and more panels ask it for more lines at once.
ROW_PANEL_CHOICES = (6, 4, 8, 3, 2, 1)
#: Lanes of a tile of fewer channels than that.  Where a 512-bit vector takes two passes, half of one takes
#: half the time; elsewhere it costs the same.  Both sizes in one tile would need every broadcast twice.
NARROW = 8


@dataclass(frozen=True)
class TilePlan:
    """A tile spans ``panels``; its rows lie ``stride`` activations apart; ``single``: taps of one channel.

    ``parts_held``: registers that a vector of weights fills once it is taken apart; ``rows_held``: whether
    one holds the next activations of each row.
    """

    cpu: Cpu
    form: str
    panels: int
    stride: int
    single: bool = False
    parts_held: int = 1
    rows_held: bool = False

    def width(self, columns: int) -> int:
        """Columns that a tile of ``columns`` accumulates, in whole vectors."""
        lanes = min(self.cpu.lanes, NARROW if columns <= NARROW else PANEL)
        return -(-columns // lanes) * lanes

    def most_rows(self, columns: int) -> int:
        """Rows whose accumulators fit the registers, and whose activations fit the first-level cache.

        Beside the accumulators a tile holds its weights and one broadcast, or its broadcasts and one
        vector of weights, whichever are fewer; the lanes form also holds the choices and what it permutes.
        Taps of a single channel are no loop, and LLVM keeps the activations that neighbouring taps share.
        Rows a multiple of 64 bytes apart share cache sets.
        """
        vectors = vectors_in(self.cpu, columns)
        if self.form == "lanes":
            held = 2 * vectors + 3 if self.parts_held == 1 else 3 * self.parts_held + 2
            rows = (self.cpu.registers - held) // vectors
        else:
            parts = self.parts_held
            free = self.cpu.registers - (parts > 1)  # a word, before it is taken apart
            if self.rows_held and self.form == "shared":
                free -= IN_TABLE
            weights_held = (free - parts * (1 + vectors)) // (vectors + self.rows_held)
            broadcasts_held = (free - parts) // (vectors + parts)
            rows = broadcasts_held if self.single else max(weights_held, min(broadcasts_held, vectors))
        sets = (
            CACHE_SETS // math.gcd(self.stride // LINE, CACHE_SETS) if self.stride % LINE == 0 else CACHE_SETS
        )
        return max(1, min(rows, CACHE_WAYS * sets))

    def parts(self, count: int, columns: int) -> list[tuple[int, int, int, int]]:
        """Cuts ``count`` panels that hold ``columns``: (first panel, repeats, panels, columns of each).

        A last panel that narrow vectors can hold is a tile of its own.
        """
        full, rest = divmod(columns, PANEL)
        whole = full // self.panels
        first = whole * self.panels
        cut = [(0, whole, self.panels, self.panels * PANEL)] if whole else []
        if first < full and 0 < rest <= NARROW < self.cpu.lanes:
            cut.append((first, 1, full - first, (full - first) * PANEL))
            first = full
        if first < count:
            cut.append((first, 1, count - first, columns - first * PANEL))
        return cut


def vectors_in(cpu: Cpu, columns: int) -> int:
    return -(-columns // min(cpu.lanes, PANEL))


def step_cost(
    cpu: Cpu, rows: int, columns: int, form: str, streamed: bool, assembled: int = 0, window: float = 0
) -> float:
    """Half cycles of one reduction step of a tile: two multiply-adds and two loads a cycle.

    Weights that are ``streamed`` come from the second-level cache, half a line a cycle at best; the nearer to
    that, the less of it is hidden.  Loads that fit beside the multiply-adds still cost a little.  Words that
    are ``assembled`` from activations that lie apart take so many instructions a row, and their broadcast
    goes through a port that multiplies.  ``window``: what all vectors of a row share, in multiply-adds.
    """
    vectors = vectors_in(cpu, columns)
    products = rows * vectors
    loads = vectors + (rows if form in ("dense", "shared") else products)
    lines = 4 * -(-columns // PANEL) if streamed else 0
    busy = max(products, loads, lines, IN_FLIGHT)
    # Measured: a tile that holds its broadcasts is a little slower than one that holds its weights.
    held = 0.25 if cpu.lanes < PANEL and rows < vectors else 0.0
    if assembled:
        busy = max(busy, (assembled * rows + products) / 4.7) + rows / 6  # both measured
    return busy + window * rows + loads / 16 + busy * (lines / busy) ** 2 / 5 + held


@dataclass(frozen=True)
class Extent:
    """What is cut: ``rows``, ``stride`` activations apart, by ``count`` panels that hold ``columns``.

    Each value is a sum over ``depth`` channels of ``taps``, taken in words of ``element``, which ``stride``
    counts as well; ``written`` values are stored in all.
    """

    pattern: Pattern
    depth: int
    stride: int
    rows: int
    columns: int
    count: int
    taps: int = 1
    written: int = 0
    element: Element = FLOAT32

    @property
    def steps(self) -> int:
        """Multiply-adds of one value: words, where those are taken at once."""
        return self.taps * self.element.words(self.pattern.kept(self.depth))


def tile_plans(cpu: Cpu, extent: Extent) -> list[tuple[float, TilePlan]]:
    """(half cycles of one row of tiles, plan) of every tile, the cheapest first."""
    form = extent.pattern.form(extent.depth)
    run = cpu.run_cost if 4 * extent.written > cpu.l2 // 2 else 0

    whole = form != "shared" or extent.element.windows(extent.pattern, extent.depth)
    assembled = 0 if whole else ASSEMBLED[extent.element.group]
    rows_held = extent.element.together(cpu) > 1 and bool(whole)
    repeated = form == "lanes" and extent.element is INT8 and reach(extent.pattern, INT8.group) == WINDOW
    window = REPEATED if repeated else LOOKED_UP if rows_held and form == "shared" else 0.0

    def cost(plan: TilePlan) -> float:
        total = 0.0
        for _, repeats, panels, columns in plan.parts(extent.count, extent.columns):
            streamed = 4 * PANEL * panels * extent.steps > cpu.l1 // 2
            for _, tiles, height in even_split(extent.rows, plan.most_rows(columns)):
                step = step_cost(cpu, height, columns, form, streamed, assembled, window)
                total += repeats * tiles * (extent.steps * step + height * run)
        return total

    single = extent.steps == extent.taps > 1
    plans = []
    for panels in ROW_PANEL_CHOICES if extent.rows == 1 and form == "lanes" else PANEL_CHOICES:
        if form == "shared" and (extent.pattern.block // PANEL) % panels:
            continue
        if panels > max(1, extent.count) or vectors_in(cpu, panels * PANEL) * 2 > cpu.registers:
            continue
        parts = extent.element.parts(cpu)
        plans.append(TilePlan(cpu, form, panels, extent.stride, single, parts, rows_held))
    return sorted(((cost(plan), plan) for plan in plans), key=lambda found: found[0])


def tile_plan(cpu: Cpu, extent: Extent, panels: int = 0) -> TilePlan:
    """The cheapest tile, or the one that spans ``panels`` if there is one."""
    plans = [plan for _, plan in tile_plans(cpu, extent)]
    return next((plan for plan in plans if plan.panels == panels), plans[0])


def row_blocks(cpu: Cpu, inputs: int, weights: int, passes: int, most: int) -> int:
    """Blocks of rows worth keeping in the second-level cache while all weights pass; at most ``most``.

    The other order keeps a few panels there while all rows pass, ``passes`` times.  The one with less traffic
    beyond that cache wins; a few blocks are made anyway where there would be too few tasks for the cores.
    ``inputs`` and ``weights`` are float32 values.
    """
    fitting = -(-4 * inputs // (cpu.l2 // 2))
    enough = -(-TASKS // passes)
    if fitting > 1 and fitting * weights + inputs < passes * inputs + weights:
        enough = max(fitting, enough)
    return max(1, min(enough, most))
