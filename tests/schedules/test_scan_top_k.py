"""CumSum and TopK against NumPy: any axis, ties, whole sorts."""

import numpy as np
import pytest
import tvm

from sparsec.schedules import RULE, scan, schedule, top_k
from sparsec.schedules.target import X86_LEVELS

CPU = X86_LEVELS["v3"]


def build(func):
    mod = schedule(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), CPU)
    assert str(mod["main"].attrs[RULE]) == "as written"
    return tvm.tirx.build(mod, target=CPU.tvm_target(), pipeline="s_tir")["main"]


@pytest.mark.parametrize(
    "shape,axis", [((3, 33), -1), ((2, 17, 5), 1), ((1, 1), 0), ((2, 300), -1), ((40,), 0)]
)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("largest", [True, False])
def test_top_k_orders_values_and_then_indices(shape, axis, dtype, largest):
    # Rounded, so that there are ties.
    x = np.round(np.random.default_rng(0).standard_normal(shape) * 3).astype(dtype)
    for k in {1, 2, 3, 7, shape[axis]} & set(range(1, shape[axis] + 1)):
        reduced = list(shape)
        reduced[axis] = k
        values, indices = tvm.runtime.empty(reduced, dtype), tvm.runtime.empty(reduced, "int64")
        build(top_k.top_k(shape, dtype, axis, k, largest))(tvm.runtime.tensor(x), values, indices)
        order = np.argsort(-x if largest else x, axis=axis, kind="stable").take(range(k), axis)
        np.testing.assert_array_equal(indices.numpy(), order)
        np.testing.assert_array_equal(values.numpy(), np.take_along_axis(x, order, axis))


def test_top_k_with_infinities_and_nan_ends_and_keeps_the_rest():
    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    x[0, 5], x[0, 9], x[0, 60] = np.inf, -np.inf, np.nan
    values, indices = tvm.runtime.empty((1, 64), "float32"), tvm.runtime.empty((1, 64), "int64")
    build(top_k.top_k((1, 64), "float32", -1, 64))(tvm.runtime.tensor(x), values, indices)
    assert sorted(indices.numpy()[0]) == list(range(64))
    np.testing.assert_array_equal(values.numpy()[0], x[0][indices.numpy()[0]])


@pytest.mark.parametrize("k", [0, 6])
def test_top_k_of_more_than_there_is_is_refused(k):
    with pytest.raises(ValueError, match=f"top_k: required k from 1 to 5, the extent of axis 1, found {k}"):
        top_k.top_k((2, 5), "float32", -1, k)


@pytest.mark.parametrize("shape,axis", [((3, 33), -1), ((2, 17, 5), 1), ((7, 40), 0), ((2, 1, 3), 1)])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum(shape, axis, exclusive, reverse):
    x = np.random.default_rng(2).integers(-50, 50, shape)
    for dtype in ("float32", "int64"):
        y = tvm.runtime.empty(shape, dtype)
        func = scan.cumsum(shape, dtype, axis, exclusive, reverse)
        build(func)(tvm.runtime.tensor(x.astype(dtype)), y)
        ordered = np.flip(x, axis) if reverse else x
        want = np.cumsum(ordered, axis) - exclusive * ordered
        np.testing.assert_array_equal(y.numpy(), np.flip(want, axis) if reverse else want)


def test_cumsum_of_an_axis_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="cumsum: required an axis from -1 to 0, found 1; correct the axis"):
        scan.cumsum((3,), "float32", 1)
