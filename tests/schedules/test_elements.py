"""bfloat16 kernels against float64 with operands that ml_dtypes rounded, on every CPU level."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import te

from sparsec.schedules import elements, schedule
from sparsec.schedules.contraction import Gemm, conv, find_anchor
from sparsec.schedules.contraction_rule import ranked_plans
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.elements import BFLOAT16, BFLOAT16_WEIGHTS, FLOAT32
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.target import X86_LEVELS

LEVELS = [
    pytest.param("v2", id="v2"),
    pytest.param("v3", id="v3", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param("v4", id="v4", marks=pytest.mark.isa("avx512f", "avx512vl")),
    pytest.param("v4bf16", id="v4bf16", marks=pytest.mark.isa("avx512_bf16")),
]
SIZES = [(1, 1, 1), (1, 33, 31), (7, 2, 129), (15, 17, 16), (33, 31, 15), (129, 3, 7)]
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, 1e-30], "f"
)


def rounded(x):
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def run(func, level, inputs, shape, dtype="float32"):
    """The output of a function scheduled and built for ``level``; it starts as NaN."""
    cpu = X86_LEVELS[level]
    mod = schedule(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), cpu)
    lib = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir")
    y = tvm.runtime.tensor(np.full(shape, 0xFF if dtype == "uint16" else np.nan, dtype))
    lib["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in inputs], y)
    return y.numpy()


def check(assert_close, spec, level, weight, product):
    x = np.random.default_rng(5).standard_normal(spec.x_shape).astype("f")
    arrays = spec.pack(weight)
    got = run(spec.prim_func(), level, [spec.kind.stored_activations(x), *arrays], spec.y_shape)
    seen = x.astype("d") if spec.kind.activation == "float32" else rounded(x)
    weight = weight if spec.kind is FLOAT32 else rounded(weight)
    assert_close(got, product(seen, weight.astype("d")))
    np.testing.assert_array_equal(spec.unpack(arrays), weight)


def gemm(x, w):
    return x @ w.T


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m,k,n", SIZES)
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16 weights"])
def test_dense_of_every_size(assert_close, level, precision, m, k, n):
    weight = np.random.default_rng(k).standard_normal((n, k)).astype("f")
    check(assert_close, Gemm((m,), k, n, precision=precision), level, weight, gemm)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pattern", [Pattern(2, 4, 32), Pattern(1, 4, 16), Pattern(3, 5, 48), Pattern(1, 3)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("m,k,n", [(1, 67, 50), (17, 34, 129), (2, 1, 3)])
def test_patterns(assert_close, pruned_weight, level, pattern, m, k, n):
    weight = pruned_weight(np.random.default_rng(9), pattern, n, 1, k)[:, 0]
    check(assert_close, Gemm((m,), k, n, pattern, precision="bfloat16"), level, weight, gemm)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("groups,in_c,k,stride,pad", [(1, 3, 3, 2, 1), (1, 16, 1, 1, 0), (2, 6, 3, 1, 1)])
def test_convolutions(assert_close, level, groups, in_c, k, stride, pad):
    torch = pytest.importorskip("torch")
    spec = conv(2, 9, 9, in_c, 18, k, k, (stride,) * 2, (1, 1), (pad,) * 4, groups, DENSE, "bfloat16")
    weight = np.random.default_rng(2).standard_normal((18, k, k, in_c // groups)).astype("f")

    def product(x, w):
        x, w = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(w).permute(0, 3, 1, 2)
        return torch.conv2d(x, w, None, stride, pad, 1, groups).permute(0, 2, 3, 1).numpy()

    check(assert_close, spec, level, weight, product)


@pytest.mark.parametrize("pattern", [DENSE, Pattern(2, 4, 16), Pattern(3, 5, 1)], ids=str)
def test_the_definition_is_right_unscheduled(assert_close, run_kernel, pruned_weight, pattern):
    rng = np.random.default_rng(4)
    spec = Gemm((2, 3), 21, 37, pattern, precision="bfloat16")
    x, w = rng.standard_normal((2, 3, 21)).astype("f"), pruned_weight(rng, pattern, 37, 1, 21)[:, 0]
    stored = spec.kind.stored_activations(x)
    got = run_kernel(spec.prim_func(), X86_LEVELS["v2"], [stored, *spec.pack(w)], spec.y_shape)
    seen = rounded(x) if spec.kind is BFLOAT16 else x.astype("d")
    assert_close(got, seen @ rounded(w).T)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1, 7, 16, 33])
def test_rounding_is_to_the_nearest_even(level, size):
    x = np.resize(np.concatenate([SPECIAL, np.random.default_rng(1).standard_normal(40).astype("f")]), size)
    source = te.placeholder((size,), "float32", "x")
    func = te.create_prim_func([source, te.compute((size,), lambda i: elements.narrowed(source(i)))])
    got = run(func, level, [x], (size,), "uint16").view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.astype("f"), rounded(x).astype("f"))
    assert (np.signbit(got) == np.signbit(x))[~np.isnan(x)].all()


def test_numpy_rounds_alike():
    rng = np.random.default_rng(8)
    x = np.concatenate([SPECIAL, rng.integers(0, 2**32, 5000, np.uint32).view("f")])
    with np.errstate(invalid="ignore"):
        got, want = elements.to_bfloat16(x), x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.isnan(got.view(ml_dtypes.bfloat16)), np.isnan(x))
    np.testing.assert_array_equal(got[~np.isnan(x)], want.view(np.uint16)[~np.isnan(x)])
    np.testing.assert_array_equal(elements.from_bfloat16(got), got.view(ml_dtypes.bfloat16).astype("f"))


def test_forms_have_their_elements():
    assert Gemm((8,), 64, 64, precision="bfloat16").kind is BFLOAT16
    assert Gemm((8,), 64, 64, Pattern(2, 4, 32), precision="bfloat16").kind is BFLOAT16
    assert Gemm((1,), 64, 64, Pattern(3, 5), precision="bfloat16").kind is BFLOAT16_WEIGHTS
    assert Gemm((196,), 64, 64, Pattern(3, 5), precision="bfloat16").kind is FLOAT32  # strips


def test_of_float32_a_spec_says_nothing():
    assert "precision" not in to_text(Gemm((3,), 4, 5))
    spec = Gemm((3,), 4, 5, precision="bfloat16")
    assert find_anchor(spec.prim_func())[0] == spec


def test_products_are_one_instruction_and_stay_in_registers():
    """Where a word is taken apart, its halves take registers, and a tile has fewer rows."""
    spec, cpu = Gemm((64,), 64, 64, precision="bfloat16"), X86_LEVELS["v4bf16"]
    mod = schedule(tvm.IRModule({"main": spec.prim_func().with_attr("global_symbol", "main")}), cpu)
    asm = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir").inspect_source("asm")
    assert "vdpbf16ps" in asm and "vfmadd" not in asm
    rows = [
        next(plan.most_rows(32) for _, plan in ranked_plans(X86_LEVELS[level], spec) if plan.panels == 2)
        for level in ("v4bf16", "v4")
    ]
    assert rows == [14, 12]


def test_with_few_registers_tiles_are_those_of_float32():
    """Activations are widened once, where more than a few rows meet a weight."""
    for rows, same in ((64, True), (3, False)):
        tiles = [
            [
                (plan.panels, plan.most_rows(16))
                for _, plan in ranked_plans(X86_LEVELS["v3"], Gemm((rows,), 64, 64, precision=precision))
            ]
            for precision in ("bfloat16", "float32")
        ]
        assert (tiles[0] == tiles[1]) == same
