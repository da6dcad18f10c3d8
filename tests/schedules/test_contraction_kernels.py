"""What every contraction kernel keeps to: no memory at run time, NaN and Inf as they come."""

import re

import numpy as np
import pytest
import tvm

from sparsec.schedules import tir
from sparsec.schedules.batch_matmul import BatchMatmul
from sparsec.schedules.contraction import Gemm, conv
from sparsec.schedules.contraction_plan import row_blocks
from sparsec.schedules.contraction_rule import rule
from sparsec.schedules.contraction_tile import even_split, pieces
from sparsec.schedules.layout import Pattern
from sparsec.schedules.target import X86_LEVELS

SAME = ((1, 1), (1, 1), (1, 1, 1, 1))
SPECS = {
    "gemm": Gemm((197,), 40, 50),
    "gemm-few-rows": Gemm((1,), 40, 200),
    "shared": Gemm((40,), 64, 64, Pattern(2, 4, 32)),
    "lanes": Gemm((8,), 64, 64, Pattern(2, 4)),
    "lanes-16": Gemm((8,), 64, 64, Pattern(3, 16)),
    "gather": Gemm((8,), 64, 64, Pattern(1, 3)),
    "conv": conv(1, 9, 30, 64, 40, 3, 3, *SAME),
    "depthwise": conv(1, 9, 30, 40, 40, 3, 3, *SAME, 40),
    "matmul": BatchMatmul((12,), (12,), 50, 40, 50),
    "matmul-turned": BatchMatmul((12,), (12,), 50, 140, 50, (), (0, 2, 1)),
    "matmul-scattered": BatchMatmul((12,), (12,), 50, 40, 50, (), (1, 2, 0)),
}


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
@pytest.mark.parametrize("name", SPECS)
def test_no_memory_is_allocated_at_run_time(name, level):
    cpu = X86_LEVELS[level]
    func = rule(SPECS[name].prim_func(), cpu).with_attr("global_symbol", "main")
    lib = tvm.tirx.build(tvm.IRModule({"main": func}), target=cpu.tvm_target(), pipeline="s_tir")
    assert "Workspace" not in lib.inspect_source("ll")


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize("name", ["gemm", "conv", "depthwise", "lanes"])
def test_registers_are_enough(name):
    """The accumulators stay in registers: no vector is reloaded from the stack."""
    cpu = X86_LEVELS["v4"]
    func = rule(SPECS[name].prim_func(), cpu).with_attr("global_symbol", "main")
    lib = tvm.tirx.build(tvm.IRModule({"main": func}), target=cpu.tvm_target(), pipeline="s_tir")
    assert not re.search(r"vmov[a-z0-9]*\s+[-0-9]*\(%rsp\), %zmm", lib.inspect_source("asm"))


@pytest.mark.isa("avx512f")
def test_nan_and_inf_reach_exactly_the_outputs_that_read_them(run_kernel):
    cpu, gemm = X86_LEVELS["v4"], Gemm((5,), 32, 40)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 32)).astype("f"), rng.standard_normal((40, 32)).astype("f")
    x[1, 3], x[2, 31], x[3, 0], w[7] = np.nan, np.inf, -np.inf, 0
    got = run_kernel(rule(gemm.prim_func(), cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape)
    with np.errstate(invalid="ignore"):
        want = x.astype("d") @ w.T.astype("d")
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want))
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize("block", [1, 16])
def test_a_pruned_position_skips_inf_and_nan(run_kernel, block):
    """The documented exception: dense gives 0 * Inf = NaN there, N:M gives nothing."""
    cpu, gemm = X86_LEVELS["v4"], Gemm((2,), 16, 16, Pattern(2, 4, block))
    x, w = np.ones((2, 16), "f"), np.zeros((16, 16), "f")
    w[:, [0, 1, 4, 5, 8, 9, 12, 13]] = 1
    x[0, 2], x[1, 15] = np.inf, np.nan
    got = run_kernel(rule(gemm.prim_func(), cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape)
    np.testing.assert_array_equal(got, np.full((2, 16), 8, "f"))


def test_cuts_cover_everything_once():
    for total in range(1, 60):
        for most in (1, 2, 5, 8, 13):
            rows = [s + r * z + i for s, n, z in even_split(total, most) for r in range(n) for i in range(z)]
            assert rows == list(range(total))
            assert max(z for _, _, z in even_split(total, most)) <= most
        for lanes in (1, 4, 16):
            assert [s + i for s, z in pieces(total, lanes) for i in range(z)] == list(range(total))
            assert all(z & (z - 1) == 0 and z <= lanes for _, z in pieces(total, lanes))


def test_rows_are_blocked_where_that_saves_traffic():
    cpu = X86_LEVELS["v4"]
    # 512 x 1024 activations and 1024 x 1024 weights: 8 blocks of 64 rows beat 32 passes over all rows.
    assert row_blocks(cpu, inputs=512 * 1024, weights=1024 * 1024, passes=32, most=11) == 8
    # One row is not cut; a single panel is shared out for the cores only.
    assert row_blocks(cpu, inputs=4096, weights=4096 * 4096, passes=128, most=1) == 1
    assert row_blocks(cpu, inputs=3136 * 16, weights=16 * 16, passes=1, most=66) == 16


def test_unflatten_inverts_row_major_order():
    index, dims = tir.var("i"), (2, 1, 3, 4)
    coords = tir.unflatten(index, dims)
    analyzer = tvm.sym.Analyzer()
    for flat in range(24):
        got = [int(analyzer.simplify(tir.rewrite(c, {index: tir.i64(flat)}))) for c in coords]
        assert got == [int(c) for c in np.unravel_index(flat, dims)]


def test_a_stack_buffer_has_a_limit():
    with pytest.raises(
        ValueError, match=r"local: required at most 1023 bytes, found acc of float32 \[16, 16\]"
    ):
        tir.local("acc", 16, 16)
