"""Products with few rows, under the emulator: every thread order, accesses checked."""

import numpy as np
import pytest
from tvm import te

from sparsec.schedules.contraction import Gemm, packed_for
from sparsec.schedules.cuda.vector_kernel import rule
from sparsec.schedules.cuda.vector_tile import MOST_ROWS, Cut
from sparsec.schedules.layout import DENSE, Pattern


def case(pruned_weight, rows, k, n, pattern):
    spec = Gemm((rows,), k, n, pattern)
    rng = np.random.default_rng(0)
    weight = pruned_weight(rng, pattern, n, 1, k)[:, 0]
    x = rng.standard_normal(spec.x_shape).astype(np.float32)
    return spec, [x, *spec.pack(weight)], x.astype(np.float64) @ weight.astype(np.float64).T


@pytest.mark.parametrize(
    "rows, k, n, pattern",
    [
        (1, 33, 31, DENSE),  # less than a turn of the warps; a copy word by word
        (1, 1100, 20, DENSE),  # several blocks along k
        (3, 260, 17, Pattern(2, 4, 16)),
        (7, 147, 40, Pattern(2, 4, 1)),  # windows, and channels behind them
        (4, 130, 24, Pattern(1, 8, 4)),
        (2, 65, 16, Pattern(1, 3, 2)),  # positions of their own, and inputs behind the last group
        (16, 1040, 36, Pattern(3, 4, 32)),  # chunks of inputs
        (1, 3, 5, DENSE),
    ],
)
def test_products(run_emulated, assert_close, pruned_weight, rows, k, n, pattern):
    spec, inputs, want = case(pruned_weight, rows, k, n, pattern)
    for y in run_emulated(spec.prim_func(), "vector", inputs, (spec.y_shape, np.float32), checked=k > 1000):
        assert_close(y, want)


def test_what_is_left_to_other_rules(gpu):
    assert rule(Gemm((MOST_ROWS,), 64, 32).prim_func(), gpu) is not None
    assert rule(Gemm((MOST_ROWS + 1,), 64, 32).prim_func(), gpu) is None
    assert rule(Gemm((0,), 64, 32).prim_func(), gpu) is None
    x = te.placeholder((4,), "float32", name="x")
    assert rule(te.create_prim_func([x, te.compute((4,), lambda i: x[i] + x[i])]), gpu) is None
    scattered = Cut.of(Gemm((4,), 64, 32, Pattern(1, 10, 1, scattered=True)))
    assert scattered == "weights in strips, which are cut for other blocks of inputs"


@pytest.mark.parametrize("rows", [1, 4, 5, 16])
@pytest.mark.parametrize("k, n", [(4096, 4096), (768, 3072), (3072, 768), (11008, 4096), (64, 64)])
@pytest.mark.parametrize("pattern", [DENSE, Pattern(2, 4, 32), Pattern(2, 4, 1), Pattern(1, 5, 1)])
def test_cuts_cover_everything_and_give_all_multiprocessors_work(rows, k, n, pattern):
    cut = Cut.of(packed_for(Gemm((rows,), k, n, pattern), None))
    assert (cut.splits - 1) * cut.own < cut.chunks <= cut.splits * cut.own
    assert (cut.chunks - 1) * cut.inputs + cut.rest < k <= cut.chunks * cut.inputs + cut.rest
    assert cut.words * 4 <= 48 * 1024
    # Where there is work for them: a block reads a few kilobytes at least.
    assert cut.blocks * cut.splits >= min(128, n * cut.kept * 4 // 65536)
