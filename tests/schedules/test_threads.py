"""Row kernels on several threads: rows are shared out so that no thread works in another's output."""

import numpy as np
import pytest
import tvm

from sparsec.schedules import schedule, softmax, sparsemax
from sparsec.schedules.target import X86_LEVELS


@pytest.mark.parametrize("shape,axis", [((1001, 65), -1), ((1000, 2003), 0), ((3, 301, 129), 1)])
@pytest.mark.parametrize("make", [softmax.softmax, sparsemax.sparsemax])
def test_every_run_gives_the_same_rows(shape, axis, make):
    cpu = X86_LEVELS["v3"]
    mod = schedule(tvm.IRModule({"main": make(shape, axis)}), cpu)
    library = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir")
    assert "ParallelLaunch" in library.inspect_source("ll")
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = tvm.runtime.empty(shape, "float32")
    for _ in range(20):
        library["main"](tvm.runtime.tensor(x), y)
        np.testing.assert_allclose(y.numpy().sum(axis), 1, atol=2e-4)
