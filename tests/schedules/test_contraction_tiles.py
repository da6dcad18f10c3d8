"""Every tile that a contraction can be cut into: the same numbers, and the one that was asked for."""

import numpy as np
import pytest

from sparsec.schedules import contraction_rule
from sparsec.schedules.contraction import Gemm, conv
from sparsec.schedules.contraction_plan import tile_plan
from sparsec.schedules.contraction_rule import TILE_PANELS, ranked_plans, rule
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.target import X86_LEVELS

GEMMS = {
    "dense": Gemm((17,), 40, 100),
    "shared": Gemm((17,), 40, 128, Pattern(2, 4, 64)),
    "lanes": Gemm((7,), 40, 104, Pattern(2, 4)),
}
LEVELS = [
    pytest.param("v3", marks=pytest.mark.isa("avx2")),
    pytest.param("v4", marks=pytest.mark.isa("avx512f")),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", GEMMS)
def test_numbers_of_every_gemm_tile(name, level, run_kernel, assert_close, pruned_weight):
    spec, cpu = GEMMS[name], X86_LEVELS[level]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(spec.x_shape).astype(np.float32)
    weight = pruned_weight(rng, spec.pattern, spec.n, 1, spec.k)[:, 0]
    plans = ranked_plans(cpu, spec)
    assert len({plan.panels for _, plan in plans}) == len(plans) > 1
    for _, plan in plans:
        func = rule(spec.prim_func().with_attr(TILE_PANELS, plan.panels), cpu)
        got = run_kernel(func, cpu, [x, *spec.pack(weight)], spec.y_shape)
        assert_close(got, x.astype(np.float64) @ weight.T.astype(np.float64))


def test_costs_ascend():
    for spec in (*GEMMS.values(), conv(1, 9, 30, 64, 40, 3, 3)):
        costs = [cost for cost, _ in ranked_plans(X86_LEVELS["v4"], spec)]
        assert costs == sorted(costs) and costs[0] > 0


def test_shared_patterns_keep_a_tile_within_a_block():
    spec = Gemm((17,), 40, 192, Pattern(2, 4, 48))
    panels = {plan.panels for _, plan in ranked_plans(X86_LEVELS["v4"], spec)}
    assert panels == {1, 3}


def test_a_depthwise_convolution_is_cut_otherwise():
    spec = conv(1, 9, 30, 40, 40, 3, 3, groups=40)
    assert ranked_plans(X86_LEVELS["v4"], spec) == []


def test_the_asked_tile_is_taken():
    """A task is a column of tiles, so the number of those is in the text of the kernel."""
    cpu, spec = X86_LEVELS["v4"], Gemm((64,), 40, 256, DENSE)
    for panels in (1, 2, 4):
        text = rule(spec.prim_func().with_attr(TILE_PANELS, panels), cpu).script()
        assert f"task % T.int64({16 // panels})" in text


def test_few_channels_are_a_tile_of_narrow_vectors():
    cpu, spec = X86_LEVELS["v4"], Gemm((64,), 40, 40, DENSE)
    plan = tile_plan(cpu, contraction_rule.extent(spec), 2)
    assert plan.parts(3, 40) == [(0, 1, 2, 32), (2, 1, 1, 8)]
    assert [plan.width(columns) for columns in (2, 8, 9, 32)] == [8, 8, 16, 32]
    assert plan.parts(3, 41) == [(0, 1, 2, 32), (2, 1, 1, 9)]


def test_taps_of_a_single_channel_leave_registers_for_their_activations():
    plan = {c: ranked_plans(X86_LEVELS["v3"], conv(1, 28, 28, c, 8, 5, 5))[0][1] for c in (1, 2)}
    assert (plan[1].most_rows(8), plan[2].most_rows(8)) == (7, 14)


def test_a_tile_that_there_is_not_is_the_counted_one():
    cpu, extent = X86_LEVELS["v4"], contraction_rule.extent(GEMMS["dense"])
    assert tile_plan(cpu, extent, 5) == tile_plan(cpu, extent)
    assert tile_plan(cpu, extent, 1).panels == 1
