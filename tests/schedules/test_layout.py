"""Packing: what comes out of ``unpack`` is what went into ``pack``, and wrong weights are named."""

import numpy as np
import pytest

from sparsec.schedules.layout import DENSE, Pattern, index_dtype, pack, shapes, unpack

PATTERNS = [DENSE, Pattern(2, 4), Pattern(1, 4, 4), Pattern(2, 8, 8), Pattern(5, 16), Pattern(1, 2, 16),
            Pattern(2, 4, 32), Pattern(3, 7, 64), Pattern(2, 3), Pattern(2, 5, 8),
            Pattern(4, 32, 4)]  # fmt: skip
SIZES = [(1, 1, 1), (7, 1, 15), (16, 2, 16), (17, 9, 33), (33, 1, 64), (65, 3, 50), (129, 1, 3)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("out,taps,channels", SIZES)
def test_round_trip(pruned_weight, pattern, out, taps, channels):
    weight = pruned_weight(np.random.default_rng(1), pattern, out, taps, channels)
    arrays = pack(pattern, weight)
    assert [(a.shape, str(a.dtype)) for a in arrays] == shapes(pattern, out, (taps,), channels)
    np.testing.assert_array_equal(unpack(pattern, arrays, out, channels), weight)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if not p.dense], ids=str)
def test_sparser_than_the_pattern_and_negative_zero(pattern):
    weight = np.zeros((40, 2, 48), np.float32)
    weight[3, 1, 5], weight[:, 0, 7] = -0.0, 2.5
    arrays = pack(pattern, weight)
    np.testing.assert_array_equal(unpack(pattern, arrays, 40, 48), weight)
    assert np.count_nonzero(arrays[0]) == 40


def test_positions_can_be_given():
    weight = np.zeros((1, 1, 16), np.float32)
    kept = np.zeros(weight.shape, bool)
    kept[..., [2, 3, 4, 7, 8, 9, 13, 15]] = True
    values, words = pack(Pattern(2, 4), weight, kept)
    assert [int(w) & 15 for w in words[0, 0, :, 0]] == [2, 3, 4, 7, 8, 9, 13, 15]
    assert not values.any()


def test_every_word_holds_eight_lanes():
    weight = np.zeros((16, 1, 16), np.float32)
    for lane in range(16):
        weight[lane, 0, lane] = 1 + lane
    values, words = pack(Pattern(1, 16), weight)
    assert words.view(np.uint32).tolist() == [[[[0x76543210, 0xFEDCBA98]]]]
    assert values[0, 0, 0].tolist() == list(range(1, 17))


def test_panels_are_padded_with_zeros():
    (values,) = pack(DENSE, np.ones((17, 1, 2), np.float32))
    assert values.shape == (2, 1, 2, 16)
    assert values[1, 0, :, 0].all() and not values[1, 0, :, 1:].any()


def test_long_rows_get_wide_indices():
    assert (index_dtype(32767), index_dtype(32768)) == ("int16", "int32")
    weight = np.zeros((16, 1, 40000), np.float32)
    weight[:, :, 39998] = 1
    values, index = pack(Pattern(1, 2, 16), weight)
    assert index.dtype == np.int32 and index[0, 0, -1] == 39998 and values[0, 0, -1].all()


def test_too_many_kept_positions_are_named():
    weight = np.zeros((32, 2, 8), np.float32)
    weight[17, 1, 4:7] = 1
    with pytest.raises(
        ValueError, match=r"at most 2 of 4 kept .* blocks of 16 .* found 3 in block 1, tap 1, group 1"
    ):
        pack(Pattern(2, 4, 16), weight)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="required 1 <= n <= m and block >= 1, found Pattern"):
        Pattern(5, 4)
    with pytest.raises(ValueError, match=r"required a weight of rank 3 \[O, T, C\], found shape \(2, 8\)"):
        pack(Pattern(2, 4), np.zeros((2, 8), np.float32))
    with pytest.raises(
        ValueError, match=r"required kept of the weight's shape \(16, 1, 16\), found \(1, 1, 16\)"
    ):
        pack(Pattern(2, 4), np.zeros((16, 1, 16), np.float32), np.zeros((1, 1, 16), bool))
