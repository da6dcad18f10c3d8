"""Depthwise convolutions under the emulator: every thread order, one run with all accesses checked."""

import numpy as np
import pytest
import torch

from sparsec.schedules import bits
from sparsec.schedules.contraction import conv
from sparsec.schedules.cuda.depthwise_kernel import rule

#: Whole tiles of pixels and vectors of channels; odd ones with borders; strides; a dilation and a multiplier.
SHAPES = [
    {"in_h": 5, "in_w": 10, "in_c": 8, "out_c": 8, "k_h": 3, "k_w": 3},
    {"in_h": 6, "in_w": 7, "in_c": 7, "out_c": 7, "k_h": 3, "k_w": 3, "pads": (1, 1, 1, 1)},
    {
        "in_h": 9,
        "in_w": 9,
        "in_c": 36,
        "out_c": 36,
        "k_h": 5,
        "k_w": 3,
        "strides": (2, 2),
        "pads": (2, 1, 1, 0),
    },
    {
        "in_h": 1,
        "in_w": 17,
        "in_c": 4,
        "out_c": 8,
        "k_h": 1,
        "k_w": 3,
        "dilations": (1, 2),
        "pads": (0, 3, 0, 2),
    },
]


@pytest.mark.parametrize(
    "shape, half", [*((shape, None) for shape in SHAPES), (SHAPES[2], "float16"), (SHAPES[1], "bfloat16")]
)
def test_right_in_every_order(run_emulated, shape, half):
    more = {"precision": f"{half} inputs"} if half else {}
    spec = conv(2, **shape, groups=shape["in_c"], **more)
    rng = np.random.default_rng(0)
    x = stored = rng.standard_normal(spec.x_shape).astype(np.float32)
    if half:
        stored = getattr(bits, f"to_{half}")(x)
        x = getattr(bits, f"from_{half}")(stored)
    weight = rng.standard_normal((spec.out_c, spec.k_h, spec.k_w, 1)).astype(np.float32)
    top, left, bottom, right = spec.pads
    padded = np.pad(x.astype("d"), ((0, 0), (top, bottom), (left, right), (0, 0)))
    want = torch.nn.functional.conv2d(
        torch.from_numpy(padded.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(weight.astype("d").transpose(0, 3, 1, 2).copy()),
        stride=spec.strides,
        dilation=spec.dilations,
        groups=spec.in_c,
    )
    want = want.numpy().transpose(0, 2, 3, 1)
    outputs = [stored, *spec.pack(weight)], (spec.y_shape, np.float32)
    for y in run_emulated(spec.prim_func(), "depthwise", *outputs, checked=shape is SHAPES[1] and not half):
        assert np.abs(y - want).max() <= 1e-6 * np.abs(want).max()


def test_other_convolutions_are_left_to_other_rules(gpu):
    assert rule(conv(1, 5, 5, 8, 8, 3, 3).prim_func(), gpu) is None
    assert rule(conv(1, 5, 5, 8, 8, 3, 3, groups=2).prim_func(), gpu) is None
    assert rule(conv(1, 5, 5, 8, 8, 3, 3, groups=8, precision="int8").prim_func(), gpu) is None
