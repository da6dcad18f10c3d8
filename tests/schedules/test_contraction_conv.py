"""Convolutions against torch in float64: pads, strides, dilations, groups, patterns, one dimension."""

import numpy as np
import pytest
import torch

from sparsec.schedules.contraction import Conv, conv, find_anchor
from sparsec.schedules.contraction_rule import rule
from sparsec.schedules.layout import Pattern
from sparsec.schedules.target import X86_LEVELS

LEVELS = [
    pytest.param(X86_LEVELS["v2"], id="v2"),
    pytest.param(X86_LEVELS["v3"], id="v3", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param(X86_LEVELS["v4"], id="v4", marks=pytest.mark.isa("avx512f", "avx512vl")),
]
#: batch, height, width, in, out, k_h, k_w, strides, dilations, pads (top, left, bottom, right), groups
CONVS = {
    "1x1": (2, 3, 5, 17, 33, 1, 1),
    "1x1-strided": (1, 7, 8, 5, 20, 1, 1, (2, 2)),
    "3x3": (1, 8, 9, 4, 16, 3, 3),
    "3x3-same": (1, 9, 31, 3, 17, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1)),
    "first-layer": (1, 33, 47, 3, 40, 7, 7, (2, 2), (1, 1), (3, 3, 3, 3)),
    "asymmetric": (2, 7, 10, 6, 9, 3, 4, (2, 3), (1, 1), (0, 2, 3, 1)),
    "dilated": (1, 15, 17, 8, 32, 3, 3, (1, 1), (2, 3), (2, 3, 2, 3)),
    "window-larger-than-input": (1, 2, 3, 5, 7, 5, 7, (1, 1), (1, 1), (2, 3, 2, 3)),
    "pads-beyond-window": (1, 3, 4, 5, 7, 2, 2, (1, 1), (1, 1), (4, 3, 3, 5)),
    "groups-of-16": (1, 5, 6, 8, 64, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 2),
    "groups-of-3": (2, 5, 6, 12, 9, 3, 3, (1, 1), (1, 1), (1, 0, 0, 1), 3),
    "eight-channels": (1, 5, 33, 1, 8, 5, 5, (1, 1), (1, 1), (2, 2, 2, 2)),
    "a-panel-and-eight": (1, 4, 31, 7, 24, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1)),
    "panels-and-seven": (1, 4, 17, 3, 39, 2, 3),
    "panels-and-nine": (1, 4, 17, 3, 57, 3, 2, (1, 2)),
    "one-dimension": (2, 1, 50, 13, 24, 1, 5, (1, 2), (1, 2), (0, 4, 0, 3)),
}


def convolve(x, w, spec):
    """torch's float64 convolution of channels-last arrays."""
    top, left, bottom, right = spec.pads
    x = torch.from_numpy(x.astype("d")).permute(0, 3, 1, 2)
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    w = torch.from_numpy(w.astype("d")).permute(0, 3, 1, 2)
    groups = getattr(spec, "groups", spec.in_c)
    y = torch.nn.functional.conv2d(x, w, None, spec.strides, 0, spec.dilations, groups)
    return y.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("name", CONVS)
def test_dense(run_kernel, assert_close, cpu, name):
    spec = conv(*CONVS[name])
    rng = np.random.default_rng(5)
    x = rng.standard_normal(spec.x_shape).astype("f")
    w = rng.standard_normal((spec.out_c, spec.k_h, spec.k_w, spec.depth)).astype("f")
    got = run_kernel(rule(spec.prim_func(), cpu), cpu, [x, *spec.pack(w)], spec.y_shape)
    assert_close(got, convolve(x, w, spec))


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("pattern", [Pattern(2, 4, 16), Pattern(1, 4, 32), Pattern(2, 4), Pattern(3, 8, 4),
                                     Pattern(2, 3), Pattern(9, 64, 4, True)], ids=str)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_patterns(run_kernel, assert_close, pruned_weight, cpu, pattern, groups):
    spec = Conv(1, 6, 11, 21 * groups, 40 * groups, 3, 3, (1, 2), (1, 1), (1, 1, 0, 1), groups, pattern)
    rng = np.random.default_rng(6)
    x = rng.standard_normal(spec.x_shape).astype("f")
    w = np.concatenate([pruned_weight(rng, pattern, 40, 9, 21) for _ in range(groups)])
    w = w.reshape(spec.out_c, 3, 3, 21)
    got = run_kernel(rule(spec.prim_func(), cpu), cpu, [x, *spec.pack(w)], spec.y_shape)
    assert_close(got, convolve(x, w, spec))
    np.testing.assert_array_equal(spec.unpack(spec.pack(w)), w)


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize(("own", "block", "packed"), [(4, 4, 16), (5, 8, 16), (24, 32, 32), (48, 32, 1)])
def test_a_block_that_holds_a_group_is_shared(
    run_kernel, assert_close, pruned_weight, cpu, own, block, packed
):
    groups, pattern = 3, Pattern(2, 4, block)
    spec = Conv(1, 4, 5, 12 * groups, own * groups, 3, 3, pads=(1, 1, 1, 1), groups=groups, pattern=pattern)
    assert spec.packed == Pattern(2, 4, packed)
    rng = np.random.default_rng(7)
    w = np.concatenate([pruned_weight(rng, pattern, own, 9, 12) for _ in range(groups)])
    w, x = w.reshape(spec.out_c, 3, 3, 12), rng.standard_normal(spec.x_shape).astype("f")
    got = run_kernel(rule(spec.prim_func(), cpu), cpu, [x, *spec.pack(w)], spec.y_shape)
    assert_close(got, convolve(x, w, spec))
    np.testing.assert_array_equal(spec.unpack(spec.pack(w)), w)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("pattern", [Pattern(), Pattern(2, 4), Pattern(1, 2, 16), Pattern(2, 3)], ids=str)
def test_the_definition_is_right_unscheduled(run_kernel, assert_close, pruned_weight, name, pattern):
    geometry = CONVS[name]
    groups = geometry[10] if len(geometry) > 10 else 1
    padded = (*geometry, *((1, 1), (1, 1), (0, 0, 0, 0), 1)[len(geometry) - 7 :])
    spec = Conv(*padded, pattern)
    rng = np.random.default_rng(8)
    own = spec.out_c // groups
    w = np.concatenate(
        [pruned_weight(rng, pattern, own, spec.k_h * spec.k_w, spec.depth) for _ in range(groups)]
    )
    w = w.reshape(spec.out_c, spec.k_h, spec.k_w, spec.depth)
    x = rng.standard_normal(spec.x_shape).astype("f")
    got = run_kernel(spec.prim_func(), X86_LEVELS["v2"], [x, *spec.pack(w)], spec.y_shape)
    assert_close(got, convolve(x, w, spec))


def test_the_anchor_carries_its_spec():
    spec = Conv(1, 6, 11, 8, 40, 3, 3, (1, 2), (1, 1), (1, 1, 0, 1), 2, Pattern(2, 4, 4))
    assert find_anchor(spec.prim_func())[0] == spec


def test_geometry_that_cannot_be():
    with pytest.raises(ValueError, match="required channels that 3 groups divide, found 8 in and 9 out"):
        Conv(1, 4, 4, 8, 9, 1, 1, groups=3)
    with pytest.raises(ValueError, match="required a window within the padded input, found an output of 0x2"):
        Conv(1, 2, 4, 8, 9, 3, 3)
    with pytest.raises(ValueError, match=r"Conv.pack: required a weight of shape \[9, 3, 3, 8\]"):
        Conv(1, 4, 4, 8, 9, 3, 3).pack(np.zeros((9, 8, 3, 3), "f"))
