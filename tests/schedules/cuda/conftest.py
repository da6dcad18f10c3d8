"""Helpers of the CUDA kernel tests: build a function, run it on the emulator in every order."""

import re

import numpy as np
import pytest

from cuda_emulator import ORDERS, Emulated
from cuda_emulator.build import compiler


@pytest.fixture(scope="session")
def gpu():
    from sparsec.schedules.cuda.target import Gpu

    return Gpu()


def bound_extents(func):
    """Blocks and threads of a kernel of one grid."""
    import tvm_ffi
    from tvm import tirx

    extents = {}

    def visit(loop):
        if loop.kind == tirx.ForKind.THREAD_BINDING:
            extents[loop.thread_binding.thread_tag] = int(loop.extent)

    tvm_ffi.structural_walk(func.body, (tirx.For, visit))
    return [[extents.get(f"{kind}.{axis}", 1) for axis in "xyz"] for kind in ("blockIdx", "threadIdx")]


def shared_bytes(func):
    import tvm_ffi
    from tvm import tirx

    sizes = []

    def visit(node):
        if node.buffer.scope() == "shared.dyn":
            sizes.append(int(node.buffer.ty.shape[0]) * 4)

    tvm_ffi.structural_walk(func.body, (tirx.AllocBuffer, visit))
    return sum(sizes)


def source_of(func, gpu, name="kernel"):
    import tvm

    mod = tvm.IRModule({"main": func.with_attr("global_symbol", name)})
    built = tvm.tirx.build(mod, target=gpu.tvm_target(), pipeline="s_tir")
    return built.imports[0].inspect_source("cuda")


@pytest.fixture(scope="session")
def run_emulated(gpu):
    """``run_emulated(func, inputs, outputs)``: the outputs of every thread order, and of a checked run.

    ``inputs`` are the arrays of the first parameters, ``outputs`` shape and dtype of the others.
    """
    if not compiler():
        pytest.skip("the emulator needs g++ (apt-get install g++)")

    def run(func, inputs, *outputs, checked=True):
        source = source_of(func, gpu)
        ((kernel, parameters),) = re.findall(r'extern "C" __global__ [^;{]*?(\w+)\(([^)]*)\) \{', source)
        order = [p.split()[-1].removesuffix("_ptr") for p in parameters.split(",")]
        grid, block = bound_extents(func)
        found = []
        for checks, how in [(False, o) for o in ORDERS] + [(True, ORDERS[-1])] * checked:
            results = [np.full(shape, 77, dtype) for shape, dtype in outputs]
            arrays = [np.ascontiguousarray(a) for a in inputs] + results
            by_name = {p.name: a for p, a in zip(func.params, arrays, strict=True)}
            emulated = Emulated(source, checks)
            emulated.launch(kernel, grid, block, [by_name[n] for n in order], shared_bytes(func), how)
            found.append(results[0] if len(results) == 1 else results)
        return found

    return run
