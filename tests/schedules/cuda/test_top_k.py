"""The k best elements of rows, under the emulator: every thread order, rows of a warp and of a block."""

import numpy as np
import pytest

from sparsec.schedules.cuda.top_k import rule
from sparsec.schedules.top_k import top_k


def outputs(shape):
    return (shape, np.float32), (shape, np.int64)


@pytest.mark.parametrize(
    "shape, k, largest",
    [((9, 31), 5, True), ((2, 3, 129), 129, False), ((2, 1500), 4, True), ((1, 33000), 2, True)],
    ids=["warps", "a whole row", "block", "block that reads its row again"],
)
def test_values_and_places(run_emulated, shape, k, largest):
    # Few values, so that many are equal; infinities are values.
    x = np.random.default_rng(0).integers(-40, 40, shape).astype(np.float32)
    x[..., 3], x[..., 11] = np.inf, -np.inf
    order = np.argsort(-x if largest else x, axis=-1, kind="stable")[..., :k]
    found = run_emulated(
        top_k(shape, "float32", -1, k, largest), "top_k", [x], *outputs((*shape[:-1], k)), checked=k == 4
    )
    for values, indices in found:
        np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))
        np.testing.assert_array_equal(indices, order)


def test_not_a_number_is_never_better(run_emulated):
    x = np.array([[1, np.nan, 3, 2]], np.float32)
    for values, indices in run_emulated(top_k((1, 4), "float32", -1, 4), "top_k", [x], *outputs((1, 4))):
        np.testing.assert_array_equal(values[0, :3], [3, 2, 1])
        np.testing.assert_array_equal(indices[0, :3], [2, 3, 0])
        assert 0 <= indices[0, 3] < 4


@pytest.mark.parametrize(
    "args", [((4, 5), "float32", 0, 2), ((1, (1 << 24) + 1), "float32", 1, 1), ((4, 5), "int64", 1, 2)]
)
def test_what_is_left_to_other_rules(gpu, args):
    assert rule(top_k(*args), gpu) is None
