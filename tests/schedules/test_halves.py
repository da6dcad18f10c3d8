"""16-bit formats: NumPy's bit patterns are torch's, and those of kernels on CPUs are NumPy's."""

import numpy as np
import pytest
import torch
import tvm
from tvm import te

from sparsec.schedules import bits, fallback, math
from sparsec.schedules.halves import HALVES
from sparsec.schedules.target import LEVELS

#: Ties, the largest float16 and what rounds beyond it, numbers below the smallest normal ones.
SPECIAL = [
    0.0,
    -0.0,
    1 + 2.0**-11,
    1 + 3 * 2.0**-11,
    65504,
    65519.9,
    65520,
    -1e9,
    6e-8,
    2.0**-25,
    1e-40,
    3e38,
]
VALUES = np.array(
    [*SPECIAL, np.inf, -np.inf, np.nan, *np.random.default_rng(0).standard_normal(18)], np.float32
)


@pytest.mark.parametrize("name", HALVES)
def test_arrays_round_as_torch_does(name):
    want = torch.from_numpy(VALUES).to(getattr(torch, name)).float().numpy()
    found = getattr(bits, f"from_{name}")(getattr(bits, f"to_{name}")(VALUES))
    np.testing.assert_array_equal(found, want)


def test_tf32_keeps_ten_bits_of_fraction():
    found = bits.to_tf32(VALUES).view(np.float32)
    assert np.isnan(found[np.isnan(VALUES)]).all() and np.isnan(bits.to_tf32(-VALUES[14:15]).view(np.float32))
    kept = np.isfinite(VALUES) & (np.abs(VALUES) > 1e-30)
    assert (np.abs(found[kept] - VALUES[kept]) <= 2.0**-11 * np.abs(VALUES[kept])).all()
    assert found[2] == np.float32(1 + 2.0**-10)  # a tie goes away from zero


@pytest.mark.isa("avx2", "fma", "f16c")
@pytest.mark.parametrize("name", HALVES)
def test_kernels_of_cpus_round_as_arrays_do(name):
    half = HALVES[name]
    x = te.placeholder(VALUES.shape, "float32", "X")
    stored = te.compute(x.shape, lambda i: half.narrowed(x(i)), "stored")
    wide = te.compute(x.shape, lambda i: half.widened(stored(i)), "wide")
    func = te.create_prim_func([x, stored, wide], index_dtype_override="int64")
    math.install()
    kernel = fallback.rule(func, LEVELS["v3"]).with_attr("global_symbol", "main")
    target = {"kind": "llvm", "mcpu": "x86-64-v3"}
    library = tvm.tirx.build(tvm.IRModule({"main": kernel}), target=target, pipeline="s_tir")
    found = [tvm.runtime.tensor(np.zeros(VALUES.shape, dtype)) for dtype in ("uint16", "float32")]
    library["main"](tvm.runtime.tensor(VALUES), *found)
    number = ~np.isnan(VALUES)  # of NaN there are many
    np.testing.assert_array_equal(found[0].numpy()[number], getattr(bits, f"to_{name}")(VALUES)[number])
    np.testing.assert_array_equal(found[1].numpy(), getattr(bits, f"from_{name}")(found[0].numpy()))
