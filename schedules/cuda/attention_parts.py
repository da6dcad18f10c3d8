"""What every kernel of attention on a GPU is made of: copies to shared memory, products, results."""

from collections.abc import Callable

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.attention import Attention, Strided, evaluate
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.attention_tile import Shape, Tile, blocks, rounds, run_bytes
from sparsec.schedules.cuda.results import deal, every
from sparsec.schedules.cuda.target import THREADS, WARP

LOW, ZERO, ONE = tir.f32(float("-inf")), tir.f32(0.0), tir.f32(1.0)


class Kernel:
    """One kernel: ``body`` makes it, the rest are its parts in the order in which they run."""

    kind: str

    @staticmethod
    def takes(spec: Attention, tile: Tile) -> bool:
        """Whether this is the kernel for it, if the tile fits."""
        return True

    def __init__(self, spec: Attention, shape: Shape, tile: Tile, params: list[tir.Buffer]):
        self.spec, self.shape, self.tile = spec, shape, tile
        self.q, self.k, self.v, *self.operands, self.y = params
        self.words = tile.words(spec, shape, self.kind)
        self.rounds = rounds(spec, tile)
        self.start, self.own = 0, self.rounds  # rounds of the block
        self.scores = ptx.registers("scores", tile.held * tile.width, "float32")
        self.sums = ptx.registers("sums", tile.held * shape.columns, "float32")
        self.reserve()

    def reserve(self) -> None:
        """Shared memory, as it is copied to and as words of float32, and registers of operands."""
        self.shared = self.staged = ptx.shared(self.words.total, "float32")
        self.left = ptx.registers("left", self.tile.height * 4, "float32")
        self.right = ptx.registers("right", max(4, self.shape.vector), "float32")

    def body(self) -> tir.Stmt:
        return ptx.grid((blocks(self.spec, self.tile),), self.tile.threads, self.block)

    def block(self, index, thread) -> tir.Stmt:
        self.thread_is(thread)
        self.tile_is(index)
        made = self.all_steps()
        return tir.seq([*self.declared(), made])

    def thread_is(self, thread) -> None:
        tile, lane = self.tile, thread % WARP
        self.thread, self.warp = thread, thread // WARP
        self.turn, self.side = self.warp % tile.warps_k, lane % tile.side
        self.row = self.warp // tile.warps_k * (tile.height * tile.down) + lane // tile.side

    def tile_is(self, index) -> None:
        across = -(-self.spec.m // self.tile.queries)
        self.first, self.unit = index % across * self.tile.queries, index // across
        self.batch = tir.unflatten(self.unit, self.spec.batch)

    def rounds_are(self, split, most: int) -> None:
        """Those of the ``split``-th of several blocks that share the keys of a tile."""
        self.start = split * most
        self.own = tirx.min(tir.i64(most), self.rounds - self.start)

    def all_steps(self) -> tir.Stmt:
        steps = self.steps()
        return tir.seq([ptx.zero(self.sums), *steps, *self.finish()])

    def declared(self) -> list[tir.Stmt]:
        """All of these, once the statements have been made."""
        return tir.alloc(self.buffers())

    def buffers(self) -> list[tir.Buffer]:
        return [self.shared, self.left, self.right, self.scores, self.sums]

    def each_row(self, body: Callable) -> tir.Stmt:
        """``body(r)`` for the thread's queries."""
        return ptx.unrolled("r", self.tile.height, body)

    def each_score(self, r, body: Callable) -> tir.Stmt:
        """``body(i, s)`` for the thread's keys, ``s`` being the score of query ``r`` and key ``i``."""

        def one(i):
            return body(i, tir.load(self.scores, self.score_at(r, i)))

        return ptx.unrolled("i", self.tile.width, one)

    def score_at(self, r, i):
        """Which register has the score of the thread's query ``r`` and its key ``i``."""
        return r * self.tile.width + i

    def score_is(self, r, i, value) -> tir.Stmt:
        return tirx.BufferStore(self.scores, value, [self.score_at(r, i)])

    def sum_at(self, r, c, v):
        """Which register has value ``v`` of the thread's vector ``c`` for its query ``r``."""
        return r * self.shape.columns + c * self.shape.vector + v

    def key_at(self, i):
        """Which of the warp's keys of a round is the thread's key ``i``."""
        return i * self.tile.side + self.side

    # ---- copies -----------------------------------------------------------------------------------------

    def fetch_queries(self) -> tir.Stmt:
        spec, shape = self.spec, self.shape
        columns = (spec.d, shape.d, shape.d_line)
        return self._fetch(self.q, spec.q, self.first, spec.m, self.tile.queries, columns, 0)

    def fetch_keys(self, step, word) -> tir.Stmt:
        spec, shape, keys = self.spec, self.shape, self.tile.keys
        return self._fetch(self.k, spec.k, step * keys, spec.n, keys, (spec.d, shape.d, shape.d_line), word)

    def fetch_values(self, step, word) -> tir.Stmt:
        spec, shape, keys = self.spec, self.shape, self.tile.keys
        columns = (spec.e, shape.e, shape.e_line)
        return self._fetch(self.v, spec.v, step * keys, spec.n, keys, columns, word)

    def _fetch(self, source, place: Strided, first, most: int, count: int, columns, word) -> tir.Stmt:
        """``count`` rows from ``first`` on to ``word``; zeros behind the last of ``most``, and on the right.

        ``columns``: how many there are, how many are wanted, and the words of a row.
        """
        there, wanted, line = columns
        size = run_bytes(place, there)
        vector = size // place.bytes
        runs = wanted // vector
        turned = place.strides[-2] == 1

        def piece(i):
            row, run = (i % count, i // count) if turned else (i // runs, i % runs)
            column = run * vector
            valid = every(
                first + row < most if most % count else None, column < there if there < wanted else None
            )
            at = [tirx.min(first + row, tir.i64(most - 1)), tirx.min(column, tir.i64(there - vector))]
            index = [place.at([*self.batch, *at])]
            to = word + row * line + run * (size // 4)
            return ptx.copy_async(self.shared, to, source, index, valid, size)

        return deal(count * runs, self.tile.threads, self.thread, piece)

    # ---- products ---------------------------------------------------------------------------------------

    def score(self, step, word) -> tir.Stmt:
        """``scores`` of the thread's queries and the keys of a round, which begin at ``word``."""
        tile, shape = self.tile, self.shape
        keys = word + (self.turn * tile.own_keys + self.side) * shape.d_line

        def some(part):
            def one(i):
                def multiply(r, x):
                    product = tir.load(self.left, r * 4 + x) * tir.load(self.right, x)
                    return self.score_is(r, i, tir.load(self.scores, self.score_at(r, i)) + product)

                return tir.seq(
                    [
                        self._load(self.right, 0, keys + i * (tile.side * shape.d_line) + part * 4),
                        ptx.unrolled_nest((tile.height, 4), multiply),
                    ]
                )

            queries = [
                self._load(self.left, r * 4, (self.row + r * tile.down) * shape.d_line + part * 4)
                for r in range(tile.height)
            ]
            return tir.seq([*queries, ptx.unrolled("i", tile.width, one)])

        return tir.seq([ptx.zero(self.scores), tir.loop("d", shape.d // 4, some), self.finish_scores(step)])

    def score_tree(self):
        """The expression of what scores are compared by."""
        return self.spec.score

    def finish_scores(self, step) -> tir.Stmt:
        """What the graph does to the products of a round; -inf where no key is."""
        tile, spec = self.tile, self.spec
        first = step * tile.keys + self.turn * tile.own_keys

        def finished(r):
            def one(i, s):
                key = first + self.key_at(i)
                row = tirx.min(self.first + self.row + r * tile.down, tir.i64(spec.m - 1))
                logical = [*self.batch, row, tirx.min(key, tir.i64(spec.n - 1))]
                value = evaluate(self.score_tree(), s, self.leaves(logical))
                if spec.n % tile.keys:
                    value = tirx.Select(key < spec.n, value, LOW)
                return self.score_is(r, i, value)

            return self.each_score(r, one)

        return self.each_row(finished)

    def leaves(self, logical: list) -> dict:
        """What expressions are made of, as ``evaluate`` takes it."""
        places = self.spec.operands
        return {"operand": lambda which: tir.load(self.operands[which], places[which].at(logical))}

    def attend(self, scores, word) -> tir.Stmt:
        """Adds to ``sums`` the values of a round, from ``word`` on, times the scores from ``scores`` on."""
        tile, shape = self.tile, self.shape
        values = word + self.turn * (tile.own_keys * shape.e_line) + self.side * shape.vector

        def some(part):
            def one(x):
                def vector(c):
                    def multiply(r, v):
                        at = self.sum_at(r, c, v)
                        product = tir.load(self.left, r * 4 + x) * tir.load(self.right, v)
                        return tirx.BufferStore(self.sums, tir.load(self.sums, at) + product, [at])

                    at = values + (part * 4 + x) * shape.e_line + c * (tile.side * shape.vector)
                    return tir.seq(
                        [
                            self._load(self.right, 0, at, shape.vector),
                            ptx.unrolled_nest((tile.height, shape.vector), multiply),
                        ]
                    )

                return ptx.unrolled("c", shape.parts, vector)

            shares = [
                self._load(self.left, r * 4, scores + r * (tile.down * self.words.score_line) + part * 4)
                for r in range(tile.height)
            ]
            return tir.seq([*shares, ptx.unrolled("x", 4, one)])

        return tir.loop("j", tile.own_keys // 4, some)

    def _load(self, to: tir.Buffer, at, word, count: int = 4) -> tir.Stmt:
        def lane(v):
            return tirx.BufferStore(to, tir.load(self.shared, word + v), [at + v])

        return tir.vector_loop(count, lane)

    # ---- results ----------------------------------------------------------------------------------------

    def finish(self) -> list[tir.Stmt]:
        """Adds up what the warps have, and stores it."""
        tile, shape, spec, words = self.tile, self.shape, self.spec, self.words
        own = self.turn * tile.queries + self.row

        def keep(r, c):
            at = (own + r * tile.down) * words.sum_line + (c * tile.side + self.side) * shape.vector

            def lane(v):
                value = tir.load(self.sums, self.sum_at(r, c, v))
                return tirx.BufferStore(self.staged, value, [at + v])

            return tir.vector_loop(shape.vector, lane)

        last = not spec.y_order or spec.y_order[-1] == len(spec.batch) + 1
        vector = 4 if last and spec.e % 4 == 0 else 1
        runs = spec.e // vector

        def run(i):
            row, column = i // runs, i % runs * vector
            query = self.first + row

            def lane(v):
                at = row * words.sum_line + column + v
                parts = [
                    tir.load(self.staged, turn * tile.queries * words.sum_line + at) * weight
                    for turn, weight in enumerate(self.weights())
                ]
                return self.store(query, column + v, sum(parts[1:], parts[0]))

            stmt = tir.seq([*self.weigh(row), tir.vector_loop(vector, lane)])
            return ptx.when(query < spec.m if spec.m % tile.queries else None, stmt)

        return [
            ptx.barrier(),
            ptx.unrolled_nest((tile.height, shape.parts), keep),
            *self.finish_rows(own),
            ptx.barrier(),
            deal(tile.queries * runs, tile.threads, self.thread, run),
        ]

    def store(self, query, column, value) -> tir.Stmt:
        return tirx.BufferStore(self.y, self.spec.stored(value), self.spec.y_index(self.batch, query, column))

    def each_result(self, body: Callable) -> tir.Stmt:
        """A kernel of ``body(column)`` for each result, which is ``first`` of the queries at hand."""
        spec = self.spec
        count = spec.batches * spec.m * spec.e

        def block(index, thread):
            at = index * THREADS + thread
            self.unit, self.first, column = tir.unflatten(at, (spec.batches, spec.m, spec.e))
            self.batch = tir.unflatten(self.unit, spec.batch)
            return ptx.when(at < count if count % THREADS else None, body(column))

        return ptx.grid((-(-count // THREADS),), THREADS, block)

    def finish_rows(self, own) -> list[tir.Stmt]:
        """What else the warps leave of their rows, the first of which is ``own`` of all warps' rows."""
        return []

    def weigh(self, row) -> list[tir.Stmt]:
        """Finds ``weights`` of the block's row ``row``."""
        return []

    def weights(self) -> list:
        """What the sums of the warps are multiplied by in the end."""
        return [ONE] * self.tile.warps_k
