"""Helpers of the CUDA kernel tests: make a function's kernel, run it on the emulator in every order."""

import numpy as np
import pytest

from cuda_emulator import ORDERS, Emulated
from cuda_emulator.build import compiler


@pytest.fixture(scope="session")
def gpu():
    from sparsec.schedules.cuda import Gpu

    return Gpu()


@pytest.fixture(scope="session")
def run_emulated(gpu):
    """``run_emulated(func, rule, inputs, *outputs)``: the outputs in every order, and of a checked run.

    ``rule`` is the name of the one that must take ``func``; ``inputs`` are the arrays of its first
    parameters, ``outputs`` shape and dtype of the others.
    """
    if not compiler():
        pytest.skip("the emulator needs g++ (apt-get install g++)")
    import tvm

    from sparsec.compiler.cuda.kernels import build_kernels

    def run(func, rule, inputs, *outputs, checked=True):
        kernels = build_kernels(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), gpu)
        assert kernels.rules == {"main": rule}
        found = []
        for checks, how in [(False, order) for order in ORDERS] + [(True, ORDERS[-1])] * checked:
            results = [np.full(shape, 77, dtype) for shape, dtype in outputs]
            arrays = [np.ascontiguousarray(a) for a in inputs] + results
            scratch = np.full(kernels.scratch_size, 0xFF, np.uint8)
            places = {"param": lambda where: arrays[where], "scratch": lambda where: scratch[where:]}  # noqa: B023
            emulated = Emulated(kernels.source, checks)
            for launch in kernels.launches["main"]:
                args = [places[argument.kind](argument.where) for argument in launch.args]
                emulated.launch(launch.kernel, launch.grid, launch.block, args, launch.shared, how)
            found.append(results[0] if len(results) == 1 else results)
        return found

    return run
