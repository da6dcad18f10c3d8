"""Vector mathematics against float64: every exponent, limits, signed zeros, NaN; no libm call is left."""

import re
from pathlib import Path

import numpy as np
import pytest
import tvm
from scipy import special
from tvm import te, tirx

from sparsec.schedules import math, schedule
from sparsec.schedules.target import X86_LEVELS

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-45, -1e-45, 1.17549435e-38, 3.4e38, -3.4e38]
SPECIAL += [88.72, 88.73, -87.4, -103.9, -104.1, 0.625, 0.921875, 10.0, 1 / np.sqrt(2), np.sqrt(2)]

# name: (numpy's function in float64, units in the last place that the module's table promises)
FUNCTIONS = {
    "exp": (np.exp, 1.2),
    "log": (np.log, 1),
    "log2": (np.log2, 3),
    "log10": (np.log10, 3),
    "log1p": (np.log1p, 2.5),
    "sigmoid": (special.expit, 2.5),
    "tanh": (np.tanh, 2.4),
    "erf": (special.erf, 2.4),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 2),
    "sinh": (np.sinh, 3),
    "cosh": (np.cosh, 3),
    "atanh": (np.arctanh, 3),
}


def samples() -> np.ndarray:
    rng = np.random.default_rng(0)
    mantissas = rng.uniform(1, 2, (280, 16))
    with np.errstate(over="ignore"):
        every_exponent = (mantissas * np.exp2(np.arange(-150, 130))[:, None]).ravel().astype(np.float32)
    near = rng.uniform(-12, 12, 16384).astype(np.float32)
    wide = rng.uniform(-110, 95, 4096).astype(np.float32)
    x = np.concatenate([every_exponent, -every_exponent, near, wide, np.float32(SPECIAL)])
    return np.resize(x, -(-x.size // 16) * 16)


def compile_map(function, size: int, level: str = "v3", dtype: str = "float32"):
    """``y[i] = function(x[i])`` in vectors of 16."""
    math.install()
    x = te.placeholder((size,), dtype, "X")
    y = te.compute((size,), lambda i: function(x(i)), "Y")
    sch = tvm.s_tir.Schedule(te.create_prim_func([x, y]))
    (loop,) = sch.get_loops(sch.get_sblock("Y"))
    _, lanes = sch.split(loop, [None, 16])
    sch.vectorize(lanes)
    return tvm.tirx.build(sch.mod, target=X86_LEVELS[level].tvm_target(), pipeline="s_tir")


def compile_kernel(function, size: int, level: str):
    """``y[i] = function(x[i])`` as the kernel that a model gets on ``level``, with the level's own forms."""
    math.install()
    x = te.placeholder((size,), "float32", "X")
    y = te.compute((size,), lambda i: function(x(i)), "Y")
    func = te.create_prim_func([x, y], index_dtype_override="int64").with_attr("global_symbol", "main")
    mod = schedule(tvm.IRModule({"main": func}), X86_LEVELS[level])
    return tvm.tirx.build(mod, target=X86_LEVELS[level].tvm_target(), pipeline="s_tir")


def run_map(library, x: np.ndarray) -> np.ndarray:
    y = tvm.runtime.empty(x.shape, str(x.dtype))
    library["main"](tvm.runtime.tensor(x), y)
    return y.numpy()


def needs(level: str) -> None:
    if level == "v4" and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs a processor with avx512f")


def check(got: np.ndarray, want: np.ndarray, ulps: float) -> None:
    rounded = want.astype(np.float32)
    exact = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(rounded))
    assert (exact | (error <= ulps)).all()
    signed = ~np.isnan(rounded)
    assert (np.signbit(got) == np.signbit(rounded))[signed].all()


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_as_exact_as_promised(name, level):
    needs(level)
    reference, ulps = FUNCTIONS[name]
    x = samples()
    got = run_map(compile_kernel(getattr(tirx, name), x.size, level), x)
    with np.errstate(all="ignore"):
        check(got, reference(x.astype(np.float64)), ulps)


@pytest.mark.parametrize("level", ["v3", "v4"])
@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_saturating_function_never_leaves_its_limits(name, level):
    needs(level)
    x = np.linspace(-12, 12, 1 << 18).astype(np.float32)
    got = run_map(compile_kernel(getattr(tirx, name), x.size, level), x)
    assert np.abs(got).max() == 1
    assert (got[x > 10] == 1).all()
    np.testing.assert_array_equal(got, -got[::-1])


@pytest.mark.parametrize("level,form", [("v3", "permps"), ("v4", "permvar.sf.512")])
def test_level_has_forms_of_its_own(level, form):
    assert form in compile_kernel(tirx.erf, 64, level).inspect_source("ll")
    assert ("scalef" in compile_kernel(tirx.exp, 64, level).inspect_source("ll")) == (level == "v4")


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, -1.0, -0.5, 1.7, -3.0])
def test_power_is_as_exact_as_promised(exponent):
    x = samples()
    got = run_map(compile_map(lambda v: tirx.pow(v, tirx.FloatImm("float32", exponent)), x.size), x)
    with np.errstate(all="ignore"):
        check(got, np.power(x.astype(np.float64), np.float64(np.float32(exponent))), 3)


def test_square_root_power_follows_c_at_its_limits():
    x = np.resize(np.float32([4.0, 0.0, -0.0, -np.inf, np.inf, -1.0, np.nan, 2.0]), 16)
    got = run_map(compile_map(lambda v: tirx.pow(v, tirx.FloatImm("float32", 0.5)), 16), x)
    np.testing.assert_array_equal(got[:7], np.float32([2, 0, 0, np.inf, np.inf, np.nan, np.nan]))
    assert not np.signbit(got[2])


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_negative_exponential_is_exact_down_to_the_smallest_normal(level):
    needs(level)
    x = np.resize(np.float32([0.0, -0.0, -1e-9, -1, -20.5, -87.3, -87.5, -100, -np.inf, np.nan]), 160)
    x[10:] = -np.random.default_rng(1).uniform(0, 87.3, 150)
    got = run_map(compile_kernel(math.exp_not_positive, 160, level), x)
    want = np.exp(x.astype(np.float64))
    lost = x < -87.33
    assert (got[lost] <= 1.2e-38).all() and (got[lost] >= 0).all()
    check(got[~lost], want[~lost], 1.5)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_extrema_keep_nan(name):
    a = np.resize(np.float32([1, np.nan, 2, np.nan, -np.inf, 3, 0, -1]), 16)
    b = np.resize(np.float32([np.nan, 1, 1, np.nan, np.inf, 3, -1, 0]), 16)
    own = getattr(math, name)
    math.install()
    left, right = (te.placeholder((16,), "float32", n) for n in "AB")
    result = te.compute((16,), lambda i: own(left(i), right(i)), "C")
    library = tvm.tirx.build(
        te.create_prim_func([left, right, result]), target=X86_LEVELS["v3"].tvm_target(), pipeline="s_tir"
    )
    got = tvm.runtime.empty((16,), "float32")
    library["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), got)
    np.testing.assert_array_equal(got.numpy(), getattr(np, name)(a, b))
    for side in (
        lambda v: own(v, tirx.FloatImm("float32", 1.0)),
        lambda v: own(tirx.FloatImm("float32", 1.0), v),
    ):
        np.testing.assert_array_equal(run_map(compile_map(side, 16), b), getattr(np, name)(b, np.float32(1)))


@pytest.mark.parametrize("name", ["exp", "log", "log1p", "erf", "tanh", "sigmoid", "rsqrt"])
@pytest.mark.parametrize("level", ["v2", "v4"])
def test_vector_code_calls_no_library(name, level):
    ir = compile_map(getattr(tirx, name), 64, level).inspect_source("ll")
    assert re.search(r"<16 x float>", ir)
    assert not re.search(rf"call [^\n]*@(llvm\.)?{name}f?[.(]", ir)


def test_double_keeps_library_accuracy():
    x = np.linspace(-3, 3, 32)
    for name in ("exp", "erf", "tanh", "sigmoid"):
        got = run_map(compile_map(getattr(tirx, name), 32, dtype="float64"), x)
        np.testing.assert_allclose(got, FUNCTIONS[name][0](x), rtol=1e-14)


def test_installing_twice_changes_nothing():
    math.install()
    math.install()
