"""Float32 contractions on ordinary cores, under the emulator: every thread order, accesses checked."""

import math

import numpy as np
import pytest
import torch

from sparsec.schedules.contraction import Gemm, conv, packed_for
from sparsec.schedules.cuda.contraction_kernel import rule
from sparsec.schedules.cuda.contraction_tile import TILES, Layer, Tile
from sparsec.schedules.cuda.tile import with_tile
from sparsec.schedules.cuda.vector_tile import MOST_ROWS
from sparsec.schedules.layout import DENSE, Pattern

RULE = "contraction"
SMALL = {
    "one warp": Tile(height=2, warps_r=1, warps_c=1, warps_k=1, stages=2),
    "warps side by side": Tile(height=4, warps_r=2, warps_c=2, warps_k=1, stages=3),
    "warps along k": Tile(height=1, warps_r=1, warps_c=1, warps_k=4, stages=3),
}
PATTERNS = [DENSE, Pattern(2, 4, 16), Pattern(3, 4, 32), Pattern(1, 8, 64), Pattern(4, 16, 16)]
#: Inputs picked for each channel, for two, four and eight; in windows, and by positions of their own.
NARROW = [
    Pattern(2, 4, 1),
    Pattern(1, 8, 2),
    Pattern(2, 4, 4),
    Pattern(4, 16, 8),
    Pattern(2, 6, 1),
    Pattern(1, 3, 4),
]


def ids(pattern):
    return f"{pattern.n}:{pattern.m}x{pattern.block}"


def gemm_case(pruned_weight, m, k, n, pattern, seed=0):
    spec = packed_for(Gemm((m,), k, n, pattern), None)
    rng = np.random.default_rng(seed)
    weight = pruned_weight(rng, pattern, n, 1, k)[:, 0]
    x = rng.standard_normal(spec.x_shape).astype(np.float32)
    return spec, [x, *spec.pack(weight)], x.astype(np.float64) @ weight.astype(np.float64).T


@pytest.mark.parametrize("tile", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("pattern", PATTERNS[:2], ids=ids)
def test_tiles(run_emulated, assert_close, pruned_weight, pattern, tile):
    spec, inputs, want = gemm_case(pruned_weight, 17, 36, 31, pattern)
    for y in run_emulated(with_tile(spec.prim_func(), tile), RULE, inputs, (spec.y_shape, np.float32)):
        assert_close(y, want)


@pytest.mark.parametrize("pattern", [*PATTERNS, *NARROW], ids=ids)
def test_patterns(run_emulated, assert_close, pruned_weight, pattern):
    spec, inputs, want = gemm_case(pruned_weight, 17, 144, 72, pattern)
    kernel = with_tile(spec.prim_func(), SMALL["one warp"])
    for y in run_emulated(kernel, RULE, inputs, (spec.y_shape, np.float32), checked=False):
        assert_close(y, want)


@pytest.mark.parametrize("most", [most for most, _ in TILES])
def test_the_tiles_that_are_chosen(run_emulated, assert_close, pruned_weight, most):
    rows, pattern = min(most, 513), Pattern(2, 4, 32)
    spec, inputs, want = gemm_case(pruned_weight, rows, 20, 68, pattern)
    if rows <= MOST_ROWS:  # products have a kernel of their own there, images have not
        spec, want = conv(1, 1, rows, 20, 68, 1, 1, pattern=pattern), want[None, None]
        inputs = [
            inputs[0],
            *(a.reshape(shape) for a, (shape, _) in zip(inputs[1:], spec.weight_args(), strict=True)),
        ]
    for y in run_emulated(spec.prim_func(), RULE, inputs, (spec.y_shape, np.float32), checked=False):
        assert_close(y, want)


@pytest.mark.parametrize(
    "size",
    [
        # batch, height, width, in, out, kernel, strides, dilations, pads, groups
        (2, 7, 5, 4, 20, (3, 3), (2, 1), (1, 1), (1, 1, 1, 1), 1),
        (1, 6, 9, 8, 20, (3, 2), (1, 2), (2, 1), (2, 0, 1, 1), 1),
        (1, 5, 5, 24, 64, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 2),
        (1, 4, 4, 12, 33, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1),
    ],
    ids=["stride", "dilation", "groups", "pointwise"],
)
@pytest.mark.parametrize("pattern", [DENSE, Pattern(2, 4, 16), Pattern(2, 4, 1)], ids=ids)
def test_convolutions(run_emulated, assert_close, pruned_weight, size, pattern):
    batch, height, width, inputs, outputs, kernel, strides, dilations, pads, groups = size
    args = (batch, height, width, inputs, outputs, *kernel, strides, dilations, pads, groups)
    spec = packed_for(conv(*args, pattern), None)
    rng = np.random.default_rng(0)
    weight = pruned_weight(rng, pattern, outputs, math.prod(kernel), inputs // groups)
    weight = weight.reshape(outputs, *kernel, -1)
    x = rng.standard_normal(spec.x_shape).astype(np.float32)
    padded = np.pad(x, [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)])
    want = torch.nn.functional.conv2d(
        torch.from_numpy(padded.transpose(0, 3, 1, 2).astype(np.float64)),
        torch.from_numpy(weight.transpose(0, 3, 1, 2).astype(np.float64)),
        stride=strides,
        dilation=dilations,
        groups=groups,
    ).numpy()
    run = run_emulated(
        with_tile(spec.prim_func(), SMALL["one warp"]),
        RULE,
        [x, *spec.pack(weight)],
        (spec.y_shape, np.float32),
        checked=pattern.dense,
    )
    for y in run:
        assert_close(y, want.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    "pattern, k, why",
    [
        (Pattern(2, 4, 1), 64, "weights in strips, which are for lanes over rows"),
        (Pattern(2, 4, 16), 66, "66 input channels, which are no multiple of 4"),
        (Pattern(2, 4, 8), 72, "72 input channels, which are no multiple of 16"),
    ],
)
def test_what_is_left_to_other_rules(gpu, pattern, k, why):
    import re

    spec = Gemm((64,), k, 32, pattern)
    spec = spec if "strips" in why else packed_for(spec, None)
    assert re.search(why, Layer.of(spec))
    assert rule(spec.prim_func(), gpu) is None
