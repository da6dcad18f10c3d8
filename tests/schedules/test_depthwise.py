"""Depthwise convolutions against torch in float64."""

import numpy as np
import pytest
import torch

from sparsec.schedules.contraction import conv, find_anchor
from sparsec.schedules.contraction_rule import rule
from sparsec.schedules.depthwise import Depthwise
from sparsec.schedules.target import X86_LEVELS

LEVELS = [
    pytest.param(X86_LEVELS["v2"], id="v2"),
    pytest.param(X86_LEVELS["v3"], id="v3", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param(X86_LEVELS["v4"], id="v4", marks=pytest.mark.isa("avx512f", "avx512vl")),
]
SAME = ((1, 1), (1, 1), (1, 1, 1, 1))
#: batch, height, width, in, out, k_h, k_w, strides, dilations, pads (top, left, bottom, right), groups
CONVS = {
    "3x3-same": (1, 9, 31, 32, 32, 3, 3, *SAME, 32),
    "channels-17": (2, 5, 7, 17, 17, 3, 3, *SAME, 17),
    "channels-63": (1, 5, 40, 63, 63, 3, 3, *SAME, 63),
    "channels-3": (1, 5, 7, 3, 3, 3, 3, *SAME, 3),
    "strided-asymmetric": (1, 12, 15, 24, 24, 5, 4, (2, 3), (1, 1), (0, 2, 3, 1), 24),
    "dilated": (1, 15, 17, 8, 8, 3, 3, (1, 1), (2, 3), (2, 3, 2, 3), 8),
    "multiplier-2": (1, 6, 7, 12, 24, 3, 3, *SAME, 12),
    "multiplier-3-few": (1, 6, 7, 2, 6, 3, 3, *SAME, 2),
    "window-larger-than-input": (1, 2, 3, 5, 5, 5, 7, (1, 1), (1, 1), (2, 3, 2, 3), 5),
    "31x31": (1, 8, 9, 16, 16, 31, 31, (1, 1), (1, 1), (15, 15, 15, 15), 16),
    "one-dimension": (2, 1, 50, 20, 20, 1, 5, (1, 1), (1, 2), (0, 4, 0, 3), 20),
}


def case(name):
    spec = conv(*CONVS[name])
    rng = np.random.default_rng(4)
    x = rng.standard_normal(spec.x_shape).astype("f")
    w = rng.standard_normal((spec.out_c, spec.k_h, spec.k_w, 1)).astype("f")
    top, left, bottom, right = spec.pads
    tx = torch.nn.functional.pad(
        torch.from_numpy(x.astype("d")).permute(0, 3, 1, 2), (left, right, top, bottom)
    )
    tw = torch.from_numpy(w.astype("d")).permute(0, 3, 1, 2)
    y = torch.nn.functional.conv2d(tx, tw, None, spec.strides, 0, spec.dilations, spec.in_c)
    return spec, x, w, y.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("name", CONVS)
def test_kernel(run_kernel, assert_close, cpu, name):
    spec, x, w, want = case(name)
    assert isinstance(spec, Depthwise)
    assert_close(run_kernel(rule(spec.prim_func(), cpu), cpu, [x, *spec.pack(w)], spec.y_shape), want)


@pytest.mark.parametrize("name", CONVS)
def test_the_definition_is_right_unscheduled(run_kernel, assert_close, name):
    spec, x, w, want = case(name)
    assert find_anchor(spec.prim_func())[0] == spec
    assert_close(run_kernel(spec.prim_func(), X86_LEVELS["v2"], [x, *spec.pack(w)], spec.y_shape), want)
