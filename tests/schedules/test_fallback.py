"""Every map and reduction, fused as FuseTIR leaves them, against NumPy: odd sizes, NaN, borders, gathers."""

import re

import numpy as np
import pytest
import tvm
from tvm import te, tirx, topi

from sparsec.schedules import RULE, math, schedule
from sparsec.schedules.target import X86_LEVELS

SIZES = [1, 3, 7, 8, 9, 31, 33, 129]


@pytest.fixture
def run():
    """``run(build, *arrays, level)``: outputs of the TE expression ``build(*tensors)``, and its LLVM IR."""

    def call(build, *arrays, level="v3", rule="fallback"):
        math.install()
        inputs = [te.placeholder(a.shape, str(a.dtype), f"in{i}") for i, a in enumerate(arrays)]
        results = build(*inputs)
        results = list(results) if isinstance(results, (tuple, list)) else [results]
        func = te.create_prim_func([*inputs, *results], index_dtype_override="int64")
        cpu = X86_LEVELS[level]
        mod = schedule(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), cpu)
        assert str(mod["main"].attrs[RULE]) == rule
        library = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir")
        outputs = [tvm.runtime.empty([int(d) for d in r.shape], str(r.dtype)) for r in results]
        library["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays], *outputs)
        found = [o.numpy() for o in outputs]
        return (found[0] if len(found) == 1 else found), library.inspect_source("ll")

    return call


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def vectors(ir: str) -> bool:
    return re.search(r"= (load|fadd|fmul|fsub) .*<(4|8|16) x float>", ir) is not None


@pytest.mark.parametrize("size", SIZES)
def test_chain_of_maps_with_broadcasts(run, size):
    x, row, column = normal(5, size), normal(size, seed=1), normal(5, 1, seed=2)
    got, ir = run(lambda a, b, c: topi.nn.relu(topi.tanh(topi.add(topi.multiply(a, b), c))), x, row, column)
    want = np.maximum(np.tanh(x.astype(np.float64) * row + column), 0)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    assert vectors(ir) or size < 8


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [(1,), (0,), (0, 1)])
def test_reductions(run, size, axis):
    x = normal(6, size)
    x[0, 0], x[5, size - 1] = -np.inf, np.inf
    for name in ("max", "min"):
        got, _ = run(lambda a, name=name: getattr(topi, name)(a, axis), x)
        np.testing.assert_array_equal(got, getattr(np, name)(x, axis))
    x = normal(6, size)
    wide = x.astype(np.float64)
    got, _ = run(lambda a: topi.sum(topi.multiply(a, a), axis), x)
    np.testing.assert_allclose(got, (wide * wide).sum(axis), rtol=2e-6)
    got, _ = run(lambda a: topi.divide(topi.sum(a, axis), tirx.const(7.0, "float32")), x)
    np.testing.assert_allclose(got, wide.sum(axis) / 7, rtol=1e-5, atol=1e-6)
    got, _ = run(lambda a: topi.prod(a, axis), x)
    np.testing.assert_allclose(got, wide.prod(axis), rtol=1e-5, atol=1e-30)
    counts = np.arange(6 * size).reshape(6, size) % 11
    got, _ = run(lambda a: topi.sum(a, axis), counts)
    np.testing.assert_array_equal(got, counts.sum(axis))


@pytest.mark.parametrize("where", [0, 4, 15, 16, 38])
@pytest.mark.parametrize("axis", [0, 1])
def test_maximum_keeps_nan_wherever_it_is(run, where, axis):
    x = normal(39, 39)
    x[where, where] = np.nan
    got, _ = run(lambda a: topi.max(a, axis), x)
    np.testing.assert_array_equal(got, x.max(axis))


def test_relu_and_clip_keep_nan_and_infinities(run):
    x = np.float32([np.nan, 1, -1, 0, np.inf, -np.inf, 9, -9, np.nan])
    got, _ = run(lambda a: (topi.nn.relu(a), topi.clip(a, -2.0, 6.0)), x)
    np.testing.assert_array_equal(got[0], np.maximum(x, 0))
    np.testing.assert_array_equal(got[1], np.clip(x, -2, 6))


@pytest.mark.parametrize("size", [1, 3, 8, 33])
def test_channels_last_pool(run, size):
    x = normal(1, 9, 7, size)
    got, ir = run(lambda a: topi.nn.pool2d(a, [3, 3], [2, 2], [1, 1], [1, 1, 1, 1], "max", layout="NHWC"), x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(got, windows.max((-1, -2)))
    got, _ = run(lambda a: topi.nn.global_pool(a, "avg", layout="NHWC"), x)
    np.testing.assert_allclose(got, x.astype(np.float64).mean((1, 2), keepdims=True), rtol=1e-5, atol=1e-6)
    assert vectors(ir) or size < 8


def test_copies_borders_and_seams(run):
    x, y = normal(4, 33), normal(4, 9, seed=1)

    def build(a, b):
        joined = topi.concatenate([a, b, a], axis=1)
        return topi.nn.pad(joined, [0, 2], [1, 5]), topi.strided_slice(joined, [0, 3], [4, 70], [1, 2])

    (padded, part), ir = run(build, x, y)
    joined = np.concatenate([x, y, x], 1)
    np.testing.assert_array_equal(padded, np.pad(joined, ((0, 1), (2, 5))))
    np.testing.assert_array_equal(part, joined[:, 3:70:2])
    assert vectors(ir)


@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 1, 0), (0, 2, 1), (2, 0, 1)])
def test_transposes(run, axes):
    x = normal(5, 17, 33)
    got, _ = run(lambda a: topi.transpose(a, axes), x)
    np.testing.assert_array_equal(got, x.transpose(axes))


def test_gathers_casts_and_conditions(run):
    x, index = normal(11, 33), np.int64([3, 0, 10, 3])

    def build(a, i):
        rows = topi.take(a, i, axis=0)
        picked = topi.where(topi.greater(rows, tirx.const(0.0, "float32")), rows, topi.negative(rows))
        return picked, topi.cast(rows, "int64"), topi.greater(rows, tirx.const(0.5, "float32"))

    (picked, whole, above), _ = run(build, x, index)
    np.testing.assert_array_equal(picked, np.abs(x[index]))
    np.testing.assert_array_equal(whole, x[index].astype(np.int64))
    np.testing.assert_array_equal(above, x[index] > 0.5)


def test_costly_producer_is_computed_once(run):
    x = normal(40, 40)

    def build(a):
        e = topi.exp(a)
        return topi.divide(e, topi.sum(e, 1, keepdims=True))

    got, _ = run(build, x)
    e = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), rtol=1e-6)


def test_long_chains_compile_in_linear_time(run):
    def build(a):
        for _ in range(12):
            a = topi.clip(topi.tanh(topi.multiply(a, tirx.const(1.25, "float32"))), -0.9, 0.9)
        return a

    x = normal(100)
    got, _ = run(build, x)
    want = x.astype(np.float64)
    for _ in range(12):
        want = np.clip(np.tanh(want * 1.25), -0.9, 0.9)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_guarded_operand_stays_guarded(run):
    """An index that a condition keeps inside the array must not be read outside of it."""
    x = normal(8)

    def build(a):
        return te.compute(
            (64,), lambda i: tirx.if_then_else(i < 8, tirx.exp(a[i] * 2.0), tirx.const(1.0, "float32"))
        )

    got, _ = run(build, x)
    np.testing.assert_allclose(got[:8], np.exp(x.astype(np.float64) * 2), rtol=1e-6)
    assert (got[8:] == 1).all()


def test_large_arrays_are_shared_between_threads(run):
    x = normal(301, 513)
    got, ir = run(lambda a: topi.sqrt(topi.add(topi.multiply(a, a), tirx.const(1.0, "float32"))), x)
    np.testing.assert_allclose(got, np.sqrt(x.astype(np.float64) ** 2 + 1), rtol=1e-6)
    assert "ParallelLaunch" in ir
    got, ir = run(lambda a: topi.sum(a, 0), x)
    np.testing.assert_allclose(got, x.astype(np.float64).sum(0), rtol=1e-4, atol=1e-4)


def test_what_is_not_made_of_nests_is_left_as_it_is(run):
    x = normal(5, 9)
    got, _ = run(lambda a: topi.argmax(a, 1), x, rule="unscheduled")
    np.testing.assert_array_equal(got, x.argmax(1))


@pytest.mark.parametrize("level", ["v2", "v4"])
def test_lanes_follow_the_level(level):
    width = X86_LEVELS[level].lanes
    math.install()
    a = te.placeholder((1000,), "float32", "a")
    func = te.create_prim_func([a, topi.exp(a)], index_dtype_override="int64")
    mod = schedule(tvm.IRModule({"main": func}), X86_LEVELS[level])
    ir = tvm.tirx.build(mod, target=X86_LEVELS[level].tvm_target(), pipeline="s_tir").inspect_source("ll")
    assert f"<{width} x float>" in ir
    assert "@expf" not in ir and "@llvm.exp." not in ir
