"""The kernel of float32 products with up to 16 rows, dense or with zeros of any N:M pattern.

Memory limits it, so a warp reads weights as they lie, 512 bytes at a time and several of these at once, and
the inputs that they multiply are picked in shared memory.  Where there are too few channels for all
multiprocessors, blocks share them along k: each leaves its sums, which a second kernel adds in their order.
"""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction import Gemm, find_anchor
from sparsec.schedules.contraction_epilogue import Epilogue, extract
from sparsec.schedules.contraction_rule import operands
from sparsec.schedules.contraction_spec import stored_channel
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.results import Staged, deal, write
from sparsec.schedules.cuda.target import THREADS, WARP, Gpu
from sparsec.schedules.cuda.vector_tile import SIDE, WARPS, Cut
from sparsec.schedules.layout import PANEL

#: Channels of a thread: what 16 bytes hold.
_CHANNELS = 4


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The kernel of a function with a ``Gemm`` of few rows, and its tail fused; None for other functions."""
    found = find_anchor(func)
    if not found or not isinstance(found[0], Gemm) or 0 in (*found[0].y_shape, found[0].k):
        return None
    spec, block = found
    cut = Cut.of(spec)
    x, weights = operands(spec, block)
    epilogue = extract(func, block)
    if isinstance(cut, str) or isinstance(epilogue, str) or cut.words * 4 > gpu.shared:
        return None
    if tir.dtype_of(x) != "float32" or not all(any(b.same_as(p) for p in func.params) for b in (x, *weights)):
        return None
    body = _Kernel(spec, cut, x, weights, epilogue).body()
    made = ptx.narrow(tirx.PrimFunc(func.params, body, func.ret_type, func.attrs))
    return made.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


class _Kernel:
    """One product: ``body`` makes its kernel, or two, the rest are its parts in order."""

    def __init__(self, spec: Gemm, cut: Cut, x, weights: list[tir.Buffer], epilogue: Epilogue):
        self.spec, self.cut, self.x, self.weights, self.epilogue = spec, cut, x, weights, epilogue
        self.shared = ptx.shared(cut.words, "float32")
        self.sums = ptx.registers("sums", cut.rows * _CHANNELS, "float32")
        self.values = ptx.registers("values", cut.ahead * _CHANNELS, "float32")
        self.word = ptx.registers("word", 1, "int32")

    def body(self) -> tir.Stmt:
        cut = self.cut
        if cut.splits == 1:
            return ptx.grid((cut.blocks, 1), WARPS * WARP, self._block)
        self.partial = tirx.decl_buffer(
            [tir.i64(d) for d in (cut.splits, cut.rows, cut.n)], "float32", name="partial"
        )
        return tir.seq(
            [
                *tir.alloc([self.partial]),
                ptx.grid((cut.blocks, cut.splits), WARPS * WARP, self._block),
                self._add_up(),
            ]
        )

    def _block(self, block, split, thread) -> tir.Stmt:
        cut = self.cut
        lane, warp = thread % WARP, thread // WARP
        self.thread, self.split = thread, split
        self.first_panel = block * cut.panels
        self.panel = tirx.min(self.first_panel + warp % cut.panels, tir.i64(cut.all_panels - 1))
        self.own_panel, self.part = warp % cut.panels, warp // cut.panels
        self.slot, self.channel = lane // _CHANNELS, lane % _CHANNELS * _CHANNELS

        def own(c):
            chunk = split * cut.own + c
            return ptx.when(chunk < cut.chunks if cut.chunks % cut.own else None, self._chunk(chunk))

        return tir.seq(
            [
                *tir.alloc([self.shared, self.sums, self.values, self.word]),
                ptx.zero(self.sums),
                tir.loop("chunk", cut.own, own),
                *self._finish(),
            ]
        )

    def _chunk(self, chunk) -> tir.Stmt:
        cut = self.cut
        # What is behind the last group belongs to the last chunk.
        last = cut.kept - (cut.chunks - 1) * cut.slots
        work = self._slots(chunk, last)
        if cut.chunks > 1 and last != cut.slots:
            work = tirx.IfThenElse(chunk < cut.chunks - 1, self._slots(chunk, cut.slots), work)
        copies = [ptx.barrier(), self._fetch(chunk), ptx.commit(), ptx.wait(0), ptx.barrier()]
        return tir.seq([*copies, work])

    def _slots(self, chunk, count: int) -> tir.Stmt:
        """The products of a chunk of ``count`` slots: several of a thread at a time, then one by one."""
        cut, start = self.cut, chunk * self.cut.slots
        step = cut.parts * SIDE
        whole = count // (step * cut.ahead)
        rest = -(-(count - whole * step * cut.ahead) // step)

        def slot(turn):
            return start + (turn * cut.parts + self.part) * SIDE + self.slot

        def many(i):
            slots = [slot(i * cut.ahead + u) for u in range(cut.ahead)]
            loads = [self._load(u, at) for u, at in enumerate(slots)]
            return tir.seq([*loads, *(self._multiply(chunk, u, at) for u, at in enumerate(slots))])

        def one(i):
            at = slot(i + whole * cut.ahead)
            exists = at < start + count if count % step else None
            return ptx.when(exists, tir.seq([self._load(0, at), self._multiply(chunk, 0, at)]))

        loops = [tir.loop("i", whole, many)] if whole else []
        return tir.seq([*loops, *([tir.loop("i", rest, one)] if rest else [])])

    def _fetch(self, chunk) -> tir.Stmt:
        """The inputs of a chunk, and of what is behind it, to shared memory: ``[row, input]``."""
        cut = self.cut
        vector = 4 if cut.k % 4 == 0 and cut.inputs % 4 == 0 else 1
        runs = cut.line // vector

        def piece(i):
            row, run = i // runs, i % runs * vector
            channel = chunk * cut.inputs + run
            valid = channel < cut.k if cut.chunks * cut.inputs + cut.line - cut.inputs > cut.k else None
            source = [*tir.unflatten(row, self.spec.lead), tirx.min(channel, tir.i64(cut.k - vector))]
            return ptx.copy_async(self.shared, row * cut.line + run, self.x, source, valid, 4 * vector)

        return deal(cut.rows * runs, WARPS * WARP, self.thread, piece)

    def _load(self, u: int, slot) -> tir.Stmt:
        def lane(v):
            value = tir.load(self.weights[0], self.panel, slot, self.channel + v)
            return tirx.BufferStore(self.values, value, [u * _CHANNELS + v])

        return tir.vector_loop(_CHANNELS, lane)

    def _multiply(self, chunk, u: int, slot) -> tir.Stmt:
        cut = self.cut

        def group(first: int):
            channel = stored_channel(
                cut.pattern, self.weights, self.panel, self.channel + first, (), slot, cut.k
            )
            # In a register of its own: TVM's bounds of a difference of chunks divide by zero.
            find = tirx.BufferStore(self.word, (channel - chunk * cut.inputs).astype("int32"), [tir.i64(0)])
            word = tir.load(self.word, tir.i64(0)).astype("int64")

            def product(row, c):
                at = row * _CHANNELS + first + c
                x = tir.load(self.shared, row * cut.line + word)
                value = tir.load(self.values, tir.i64(u * _CHANNELS + first) + c)
                return tirx.BufferStore(self.sums, tir.load(self.sums, at) + x * value, [at])

            return tir.seq([find, ptx.unrolled_nest((cut.rows, cut.share), product)])

        return tir.seq(group(first) for first in range(0, _CHANNELS, cut.share))

    # ---- results ----------------------------------------------------------------------------------------

    def _finish(self) -> list[tir.Stmt]:
        cut = self.cut
        staged = Staged(self.shared, cut.parts, cut.rows, cut.panels * PANEL, cut.sum_line)

        def join(i):
            value = tir.load(self.sums, i)
            lanes = (
                tirx.BufferStore(self.sums, value + ptx.shuffle_xor(value, by), [i]) for by in (4, 8, 16)
            )
            return tir.seq(lanes)

        def keep(row):
            at = staged.at(self.part, row, self.own_panel * PANEL + self.channel)

            def lane(v):
                return tirx.BufferStore(self.shared, tir.load(self.sums, row * _CHANNELS + v), [at + v])

            return tir.vector_loop(_CHANNELS, lane)

        def column(channel):
            return self.first_panel * PANEL + channel

        def valid(row, channel):
            return column(channel) < cut.n if cut.n % (cut.panels * PANEL) else None

        def index(row, channel):
            if cut.splits > 1:
                return [self.split, row, column(channel)]
            return [*tir.unflatten(row, self.spec.lead), column(channel)]

        vector = 4 if cut.n % 4 == 0 else 1
        return [
            ptx.unrolled("i", cut.rows * _CHANNELS, join),
            ptx.barrier(),
            ptx.when(self.slot < 1, ptx.unrolled("row", cut.rows, keep)),
            ptx.barrier(),
            write(staged, WARPS * WARP, self.thread, vector, valid, index, self._target()),
        ]

    def _target(self) -> Epilogue:
        """What becomes of a block's sums."""
        if self.cut.splits == 1:
            return self.epilogue
        anchor = tirx.Var("sum", "float32")
        return Epilogue(
            [tir.var(name) for name in ("split", "row", "channel")], anchor, [(self.partial, anchor)]
        )

    def _add_up(self) -> tir.Stmt:
        """The kernel that adds what the blocks have left, always in the same order."""
        cut = self.cut
        vector = 4 if cut.n % 4 == 0 else 1
        runs = cut.n // vector
        count = cut.rows * runs

        def block(number, thread):
            at = number * THREADS + thread
            row, channel = at // runs, at % runs * vector

            def lane(v):
                parts = [tir.load(self.partial, tir.i64(s), row, channel + v) for s in range(cut.splits)]
                index = [*tir.unflatten(row, self.spec.lead), channel + v]
                return tir.seq(self.epilogue.stores(index, sum(parts[1:], parts[0])))

            return ptx.when(at < count if count % THREADS else None, tir.vector_loop(vector, lane))

        return ptx.grid((-(-count // THREADS),), THREADS, block)
