"""Quantising by a grid: the integers of a division, for every kind of scale, zero points at both ends."""

import numpy as np
import pytest
import tvm
from tvm import te

from sparsec.compiler.objects import build_library
from sparsec.schedules import quantise, tir
from sparsec.schedules.target import X86_LEVELS


@pytest.fixture(scope="module")
def computed():
    """``computed(definition, result, *arrays)``: what a kernel for v3 makes of ``arrays``, by dtype."""
    known = {}

    def build(definition, inputs):
        args = [te.placeholder([tir.i64(d) for d in a.shape], str(a.dtype)) for a in inputs]
        func = te.create_prim_func([*args, definition(*args)], index_dtype_override="int64")
        mod = tvm.IRModule({"main": func.with_attrs({"global_symbol": "main", tir.NOALIAS: True})})
        return build_library(mod, X86_LEVELS["v3"]).library["main"]

    def run(definition, dtype, *arrays):
        if definition not in known:
            known[definition] = build(definition, arrays)
        result = tvm.runtime.empty(arrays[0].shape, dtype)
        known[definition](*map(tvm.runtime.tensor, arrays), result)
        return result.numpy()

    return run


SCALES = [1e-30, 2.0**-70, 0.00392157, 0.0371, 0.5, 0.99999994, 1.9999999, 7.3, 1e25]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_the_integers_of_a_division(computed, dtype):
    limits, rng = np.iinfo(dtype), np.random.default_rng(0)

    def plain(x, grid):
        return quantise.quantise(x, grid, dtype)

    def dividing(x, grid):
        return quantise.quantise(x, grid, dtype, divides=True)

    def back(x, grid, other):
        return quantise.requantised(x, grid, other, dtype)

    def unit(x, grid):
        return quantise.quantise(x, grid, dtype, unit=True)

    ties = np.arange(-300, 300) + 0.5
    for scale in map(np.float32, [*SCALES, 1.0]):
        definition = plain if quantise.plain(scale) else dividing
        near = (ties[:, None] * scale).astype(np.float32)
        near = np.concatenate([np.nextafter(near, -np.inf), near, np.nextafter(near, np.inf)], axis=1)
        normal = (rng.standard_normal(600) * 90 * scale).astype(np.float32)
        x = np.concatenate([near.ravel(), normal, np.float32([0, -0.0, np.inf, -np.inf, 3e38, -3e38])])
        for zero in (limits.min, limits.min + 7, limits.max):
            with np.errstate(over="ignore"):
                steps = np.clip(np.rint(x / scale), -999, 999)
            want = np.clip(steps + zero, limits.min, limits.max).astype(dtype)
            grid = quantise.grid(scale, zero, dtype)
            assert np.ptp(want.astype(int)) > 200
            for each in (definition, *([unit] if scale == 1 else [])):
                np.testing.assert_array_equal(computed(each, dtype, x, grid), want)
            if definition is plain:
                reals = (want.astype(np.float32) - zero) * np.float32(0.013)
                got = computed(back, "float32", x, grid, quantise.grid(0.013, zero, dtype))
                np.testing.assert_array_equal(got, reals)


def test_integers_as_reals(computed):
    codes = np.arange(256, dtype=np.uint8)
    for zero in (0, 113, 255):
        got = computed(quantise.dequantise, "float32", codes, quantise.grid(0.0371, zero, "uint8"))
        np.testing.assert_array_equal(got, (codes.astype(np.float32) - zero) * np.float32(0.0371))
