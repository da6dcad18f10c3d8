"""Strips: what comes out of ``unpack`` is what went into ``pack``; where a weight is stored so."""

import numpy as np
import pytest

from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.layout_strips import Strips, strips_of

PATTERNS = [Pattern(2, 4), Pattern(1, 4, 4), Pattern(2, 8, 8), Pattern(3, 7), Pattern(4, 32, 4)]
SIZES = [(1, 1, 1), (7, 1, 15), (17, 9, 33), (33, 1, 700), (16, 9, 64), (5, 3, 600)]


@pytest.mark.parametrize("rows", [40, 50, 200])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("out,taps,channels", SIZES)
def test_round_trip(pruned_weight, pattern, out, taps, channels, rows):
    weight = pruned_weight(np.random.default_rng(1), pattern, out, taps, channels)
    strips = strips_of(pattern, out, taps, channels, rows)
    arrays = strips.pack(weight)
    assert [(a.shape, str(a.dtype)) for a in arrays] == strips.args()
    np.testing.assert_array_equal(strips.unpack(arrays), weight)
    assert not (np.diff(arrays[2]) % strips.unroll).any()


@pytest.mark.parametrize("block", [1, 4])
def test_scattered_zeros_and_empty_rows(block):
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((40, 3, 70)).astype("f")
    weight *= np.repeat(rng.random((40 // block, 3, 70)) < 0.2, block, axis=0)
    weight[8:16] = 0
    strips = strips_of(Pattern(20, 64, block, scattered=True), 40, 3, 70, 64)
    arrays = strips.pack(weight)
    np.testing.assert_array_equal(strips.unpack(arrays), weight)
    stored = np.count_nonzero(weight) // strips.width
    assert stored <= arrays[2][-1] <= stored + strips.count * strips.blocks * (strips.unroll - 1)


def test_every_block_is_a_run_of_inputs():
    """Blocks tile the inputs in order: whole taps where they fit, else parts of one tap."""
    for taps, channels in [(1, 64), (9, 64), (9, 200), (3, 1000), (1, 3072), (1, 65), (2, 1100), (1, 7)]:
        strips = Strips(16, taps, channels, 4, 64, 1, 0)
        starts = [tap * channels + channel for tap, channel in map(strips.first, range(strips.blocks))]
        sizes = np.diff([*starts, taps * channels])
        assert starts[0] == 0 and sizes.max() <= min(strips.most_inputs, 64 + 15 if channels > 64 else 64)
        assert sizes.min() >= min(16, channels)
        if strips.parts > 1:
            assert sizes[strips.parts - 1] == strips.rest


def test_what_is_stored_otherwise():
    assert strips_of(DENSE, 64, 1, 64, 128) is None
    assert strips_of(Pattern(2, 4, 32), 64, 1, 64, 128) is None
    assert strips_of(Pattern(2, 4), 64, 1, 64, 39) is None
    assert strips_of(Pattern(2, 4, 4), 64, 1, 64, 23) is None
    assert strips_of(Pattern(2, 4, 4), 64, 1, 64, 24).width == 4
    assert strips_of(Pattern(2, 4), 64, 9, 64, 12).width == 1
    assert strips_of(Pattern(5, 16), 64, 1, 64, 12).width == 1
    assert strips_of(Pattern(3, 7), 64, 1, 64, 11) is None
    assert strips_of(Pattern(7, 64, scattered=True), 64, 1, 64, 1).width == 1
    assert strips_of(Pattern(2, 4, 8), 64, 1, 64, 128).width == 4


def test_every_narrow_pattern_is_in_strips_without_a_permute():
    for pattern in (Pattern(2, 4), Pattern(2, 4, 4), Pattern(3, 7)):
        assert strips_of(pattern, 64, 1, 64, 1, permute=False).width == (4 if pattern.block == 4 else 1)
    assert strips_of(Pattern(2, 4, 32), 64, 1, 64, 1, permute=False) is None
    assert strips_of(DENSE, 64, 1, 64, 1, permute=False) is None


def test_a_weight_that_does_not_fit():
    strips = strips_of(Pattern(1, 4, 4), 16, 1, 64, 128)
    with pytest.raises(ValueError, match=r"Strips.pack: required room for 256 slots, found 64; make the"):
        strips.pack(np.ones((16, 1, 64), np.float32))
