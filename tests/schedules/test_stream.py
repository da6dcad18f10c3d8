"""Streamed stores and prefetched rows: the same numbers, in the cases that allow them and in no other."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import te, tirx, topi

from sparsec.schedules import layer_norm, math, schedule, softmax, sparsemax
from sparsec.schedules.target import X86_LEVELS

CPU = replace(X86_LEVELS["v3"], stream=1 << 12, l2=1 << 12)


def built(func, cpu=CPU):
    math.install()
    mod = schedule(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), cpu)
    return tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir")


def run(library, shape, *arrays):
    y = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
    library["main"](*map(tvm.runtime.tensor, arrays), y)
    return y.numpy()


def elementwise(expression, shape):
    x = te.placeholder(shape, "float32", "X")
    return te.create_prim_func([x, expression(x)], index_dtype_override="int64")


@pytest.mark.parametrize("shape,streamed", [((3, 1024), True), ((3, 1023), False), ((2, 16), False)])
def test_map_is_streamed_where_every_vector_is_aligned_and_the_tensor_large(shape, streamed):
    library = built(elementwise(lambda x: topi.add(x, tirx.const(1.0, "float32")), shape))
    assert ("vmovntps" in library.inspect_source("asm")) == streamed
    assert ("sfence" in library.inspect_source("asm")) == streamed
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(run(library, shape, x), x + np.float32(1))


def test_map_with_a_seam_inside_a_vector_is_not_streamed():
    x = np.random.default_rng(1).standard_normal((64, 60)).astype(np.float32)
    library = built(elementwise(lambda t: topi.nn.pad(t, [0, 4], [0, 0]), x.shape))
    assert "vmovntps" not in library.inspect_source("asm")
    np.testing.assert_array_equal(run(library, (64, 64), x), np.pad(x, ((0, 0), (4, 0))))


def test_row_before_unit_axes_is_streamed():
    x = np.random.default_rng(3).standard_normal((5, 1024, 1)).astype(np.float32)
    z = np.exp(x.astype(np.float64))
    got = run(built(softmax.softmax(x.shape, 1)), x.shape, x)
    np.testing.assert_allclose(got, z / z.sum(1, keepdims=True), rtol=3e-6)


@pytest.mark.parametrize("width,streamed", [(512, True), (1024, True), (1001, False)])
def test_rows_are_streamed_with_the_same_result(width, streamed):
    shape = (7, width)
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape).astype(np.float32)
    scale = rng.standard_normal(width).astype(np.float32)
    for func, inputs in (
        (softmax.softmax(shape), [x]),
        (softmax.log_softmax(shape), [x]),
        (sparsemax.sparsemax(shape), [x]),
        (layer_norm.rms_norm(shape, -1, 1e-6), [x, scale]),
    ):
        library = built(func)
        assert ("vmovntps" in library.inspect_source("asm")) == streamed
        plain = built(func, X86_LEVELS["v3"])
        assert "vmovntps" not in plain.inspect_source("asm")
        np.testing.assert_array_equal(run(library, shape, *inputs), run(plain, shape, *inputs))


def test_the_next_rows_are_fetched_while_these_are_computed():
    assert "prefetch" in built(softmax.softmax((64, 100))).inspect_source("asm")
    assert "prefetch" not in built(softmax.softmax((2, 100))).inspect_source("asm")
