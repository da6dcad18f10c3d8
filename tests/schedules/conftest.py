"""Helpers of the kernel tests: build and run a function, compare with float64, make N:M weights."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def run_kernel():
    """``run_kernel(func, cpu, inputs, *output_shapes)``: the outputs, which start as NaN."""
    import tvm

    def run(func, cpu, inputs, *shapes):
        mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        lib = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir")
        outputs = [tvm.runtime.tensor(np.full(shape, np.nan, np.float32)) for shape in shapes]
        lib["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in inputs], *outputs)
        arrays = [y.numpy() for y in outputs]
        return arrays[0] if len(arrays) == 1 else arrays

    return run


@pytest.fixture(scope="session")
def assert_close():
    """``assert_close(got, want)``: float32 within 1e-5 of the largest magnitude of the float64 ``want``."""

    def check(got, want):
        assert got.shape == want.shape
        assert np.isfinite(got).all()
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max() + 1e-6

    return check


@pytest.fixture(scope="session")
def pruned_weight():
    """``pruned_weight(rng, pattern, out, taps, channels)``: a random ``[O, T, C]`` that holds the pattern."""

    def make(rng, pattern, out, taps, channels):
        weight = rng.standard_normal((out, taps, channels)).astype(np.float32)
        if pattern.scattered:
            strips = -(-out // pattern.block)
            kept = (
                np.arange(strips * taps * channels) < strips * taps * channels * pattern.n // pattern.m // 2
            )
            kept = rng.permutation(kept).reshape(strips, taps, channels)
            return weight * np.repeat(kept, pattern.block, axis=0)[:out]
        for top in range(0, out, pattern.block):
            for tap in range(taps):
                for left in range(0, channels - pattern.m + 1, pattern.m):
                    dropped = left + rng.permutation(pattern.m)[pattern.n :]
                    weight[top : top + pattern.block, tap, dropped] = 0
        return weight

    return make
