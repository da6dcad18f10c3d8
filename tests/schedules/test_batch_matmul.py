"""Products of activations against float64 NumPy."""

import numpy as np
import pytest

from sparsec.schedules.batch_matmul import BatchMatmul
from sparsec.schedules.contraction import find_anchor
from sparsec.schedules.contraction_rule import rule
from sparsec.schedules.target import X86_LEVELS

LEVELS = [
    pytest.param(X86_LEVELS["v2"], id="v2"),
    pytest.param(X86_LEVELS["v3"], id="v3", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param(X86_LEVELS["v4"], id="v4", marks=pytest.mark.isa("avx512f", "avx512vl")),
]
SIZES = [
    (1, 1, 1),
    (1, 64, 17),
    (3, 7, 15),
    (16, 16, 16),
    (17, 31, 33),
    (33, 65, 63),
    (8, 9, 197),
    (129, 130, 31),
    (65, 127, 2),
]


def case(spec):
    """Stored A and B, and the stored result in float64."""
    rng = np.random.default_rng(9)
    a = rng.standard_normal((*spec.a_batch, spec.m, spec.k)).astype("f")
    b = rng.standard_normal((*spec.b_batch, spec.k, spec.n)).astype("f")
    y = np.matmul(a.astype("d"), b.astype("d"))
    orders = (spec.a_order, spec.b_order, spec.y_order)
    return [v.transpose(order) if order else v for v, order in zip((a, b, y), orders, strict=True)]


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("b_order", [(), (0, 2, 1)], ids=["NN", "NT"])
@pytest.mark.parametrize("m,k,n", SIZES)
def test_sizes(run_kernel, assert_close, cpu, b_order, m, k, n):
    spec = BatchMatmul((2,), (2,), m, k, n, (), b_order)
    a, b, want = case(spec)
    assert_close(run_kernel(rule(spec.prim_func(), cpu), cpu, [a, b], spec.y_shape), want)


ORDERS = {
    "heads-inside": ((2, 3), (2, 3), 5, 20, 37, (0, 2, 1, 3), (0, 2, 1, 3), (0, 2, 1, 3)),
    "keys-by-columns": ((2, 3), (2, 3), 5, 40, 37, (0, 2, 1, 3), (0, 3, 1, 2), ()),
    "a-transposed": ((2,), (2,), 9, 10, 20, (0, 2, 1)),
    "y-transposed": ((2,), (2,), 9, 10, 20, (), (), (0, 2, 1)),
    "b-by-batch": ((4,), (4,), 9, 10, 20, (), (1, 2, 0)),
    "broadcast": ((2, 1), (1, 3), 4, 8, 33),
    "no-batch": ((), (), 70, 8, 33, (), (1, 0)),
    "rows-in-tasks": ((1,), (1,), 201, 8, 33),
    "k-in-rounds": ((1,), (1,), 20, 300, 49, (), (0, 2, 1)),
}


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("name", ORDERS)
def test_orders(run_kernel, assert_close, cpu, name):
    spec = BatchMatmul(*ORDERS[name])
    a, b, want = case(spec)
    assert_close(run_kernel(rule(spec.prim_func(), cpu), cpu, [a, b], spec.y_shape), want)


@pytest.mark.parametrize("name", ORDERS)
def test_the_definition_is_right_unscheduled(run_kernel, assert_close, name):
    spec = BatchMatmul(*ORDERS[name])
    a, b, want = case(spec)
    assert find_anchor(spec.prim_func())[0] == spec
    assert_close(run_kernel(spec.prim_func(), X86_LEVELS["v2"], [a, b], spec.y_shape), want)


def test_what_cannot_be_multiplied():
    with pytest.raises(ValueError, match=r"required batch dims that broadcast, found \(2,\) and \(3,\)"):
        BatchMatmul((2,), (3,), 1, 1, 1)
    with pytest.raises(ValueError, match=r"required b_order to be an order of \(0, 1, 2\), found \(0, 1\)"):
        BatchMatmul((2,), (2,), 1, 1, 1, (), (0, 1))
