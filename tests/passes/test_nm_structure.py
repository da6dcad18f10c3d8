"""Which pattern a weight has, against loops that read the definition word by word."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.passes import PassError
from sparsec.passes.nm_pattern import BLOCKS, NM
from sparsec.passes.nm_prune import mask
from sparsec.passes.nm_structure import NearMiss, cover, find, fits, kept_positions, unfinished

PATTERNS = [
    "2:4",
    "1:4",
    "2:8",
    "1:8",
    "4:16",
    "1:16",
    "3:4",
    "6:8",
    "5:8",
    "1:2",
    "2:3",
    "3:10",
    "15:16",
    "17:53",
]


def unions(weight, m, block, groups=1):
    """The sets of non-zero inputs of every (run of channels, block, tap, full group), by loops."""
    out, taps, k = weight.shape
    run = out // groups
    for start in range(0, out, run):
        for first in range(start, start + run, block):
            for tap in range(taps):
                for base in range(0, k - m + 1, m):
                    yield {
                        i
                        for channel in range(first, min(first + block, start + run))
                        for i in range(base, base + m)
                        if weight[channel, tap, i] != 0 or np.isnan(weight[channel, tap, i])
                    }


def tightest_by_loops(weight, groups=1):
    """Least kept, then largest block, then shortest group, over everything that fits."""
    out, _, k = weight.shape
    fitting = []
    for m in range(2, min(k, 64) + 1):
        for block in BLOCKS:
            n = max(1, *(len(u) for u in unions(weight, m, block, groups)))
            if n < m:
                fitting.append(((k // m * n + k % m) / k, -block, m, n))
            if block >= out // groups:
                break
    kept, block, m, n = min(fitting)
    return NM(n, m, -block)


def pruned(shape, nm, groups=1, seed=0):
    """Normal weights without zeros, pruned to nm."""
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.where(mask(weight, nm, groups), weight, np.float32(0))


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("block", BLOCKS)
def test_finds_the_pattern_that_was_pruned_to(text, block):
    nm = NM.parse(f"{text}x{block}")
    assert find(pruned((512, 1, 192), nm)) == nm
    assert find(pruned((128, 9, 64), nm)) == nm


@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(4, 20),
    st.sampled_from(["2:4", "1:4", "3:4", "1:2", "2:3"]),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_an_exactly_filled_pattern_is_the_tightest_by_loops(out, taps, k, text, block, seed):
    weight = pruned((out, taps, k), NM.parse(f"{text}x{block}"), seed=seed)
    expected = tightest_by_loops(weight)
    if expected.kept(k) * out * taps == np.count_nonzero(weight):
        assert find(weight) == expected


@given(
    st.integers(1, 10),
    st.integers(2, 17),
    st.floats(0, 1),
    st.integers(1, 16),
    st.integers(0, 1000),
    st.integers(1, 2),
)
@settings(max_examples=100, deadline=None)
def test_fits_and_positions_agree_with_loops(out, k, zeros, m, seed, groups):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((out * groups, 2, k)) * (rng.random((out * groups, 2, k)) >= zeros)
    for block in (1, 4, 8):
        if not 2 <= m <= k:
            continue
        sets = list(unions(weight, m, block, groups))
        worst = max(len(u) for u in sets)
        for n in range(1, m):
            nm = NM(n, m, block)
            assert fits(weight, nm, groups) == (worst <= n)
            if worst <= n:
                check_positions(kept_positions(weight, nm, groups), sets, nm, k, 2)


def check_positions(positions, sets, nm, k, taps):
    full = k // nm.m
    assert positions.dtype == np.int32
    assert positions.shape == (len(sets) // full // taps, taps, full * nm.n + k % nm.m)
    for row, start in zip(positions.reshape(-1, positions.shape[-1]), range(0, len(sets), full), strict=True):
        assert list(row[full * nm.n :]) == list(range(full * nm.m, k))
        for g, union in enumerate(sets[start : start + full]):
            kept = list(row[g * nm.n : (g + 1) * nm.n])
            unused = [i for i in range(g * nm.m, (g + 1) * nm.m) if i not in union]
            assert kept == sorted(union | set(unused[: nm.n - len(union)]))


@given(st.integers(1, 40), st.integers(4, 70), st.floats(0.1, 0.99), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_scattered_zeros_are_never_oversold(out, k, zeros, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((out, 1, k)) * (rng.random((out, 1, k)) >= zeros)
    found = find(weight)
    if isinstance(found, NM):
        assert max(len(u) for u in unions(weight, found.m, found.block)) <= found.n
        # Exactly half is allowed, hence the allowance for rounding.
        assert 1 - found.kept_fraction(k) >= 0.5 * np.mean(weight == 0) - 1e-9


def test_a_dense_or_randomly_sparse_matrix_has_no_pattern():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 1, 256))
    assert find(weight) == "no weight is zero"
    weight[5, 0, 9] = 0
    assert find(weight) == "0.0 % of the weights are zero, but scattered: no n:m fits"
    half = weight * (rng.random(weight.shape) < 0.5)
    assert "scattered" in find(half) and "the tightest pattern that fits, keeps" in find(half)


def test_very_sparse_without_structure_is_taken_for_what_it_is_worth():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 1, 256)) * (rng.random((256, 1, 256)) < 0.1)
    found = find(weight)
    assert found.m == 32 and found.block == 1
    assert found.n == max(len(u) for u in unions(weight, 32, 1))


def test_zeros_beside_the_pattern_do_not_hide_it():
    weight = pruned((128, 1, 256), NM(2, 4, 16))
    weight *= np.random.default_rng(1).random(weight.shape) > 0.1
    assert find(weight) == NM(2, 4, 16)


def test_a_long_group_must_save_more_than_a_few_zeros_to_be_preferred():
    weight = pruned((8, 1, 64), NM(2, 4))
    for channel in range(8):  # now every row has at most 31 non-zeros, so 31:64 fits too
        weight[channel, 0, np.flatnonzero(weight[channel, 0])[0]] = 0
    weight[0, 0, np.flatnonzero(weight[0, 0])[0]] = 0
    assert fits(weight, NM(31, 64))
    assert find(weight) == NM(2, 4)


def test_also_where_the_long_group_is_tried_first():
    weight = pruned((8, 1, 192), NM(3, 6))
    for row in weight[:, 0]:
        for base in range(0, 192, 64):
            kept = base + np.flatnonzero(row[base : base + 64])
            row[kept[30:]] = 0
    weight[0, 0, np.flatnonzero(weight[0, 0])[0]] = 0  # or 30:64 would be filled exactly, and right
    assert fits(weight, NM(30, 64))
    assert find(weight) == NM(3, 6)


def test_minus_zero_is_zero_and_nan_is_not():
    weight = pruned((16, 1, 32), NM(2, 4))
    assert find(np.where(weight == 0, np.float32(-0.0), weight)) == NM(2, 4)
    weight[weight == 0] = np.nan
    assert find(weight) == "no weight is zero"
    assert find(np.where(np.isnan(weight), 0, np.float32(np.nan))) == NM(2, 4)


def test_all_zero_weight_rows_and_groups():
    assert find(np.zeros((8, 1, 8))) == "every weight is zero: there is no pattern to tell"
    weight = pruned((64, 1, 64), NM(2, 4))
    weight[7] = 0
    weight[3, 0, 8:16] = 0
    assert find(weight) == NM(2, 4)
    only_in_the_tail = np.zeros((4, 1, 6))
    only_in_the_tail[:, 0, 5] = 1
    assert isinstance(find(only_in_the_tail), NM)


def test_tail_is_dense_and_counts_as_kept():
    weight = pruned((32, 1, 30), NM(2, 4))
    assert np.all(weight[..., 28:] != 0)
    assert find(weight) == NM(2, 4)
    assert NM(2, 4).kept(30) == 16
    assert kept_positions(weight, NM(2, 4)).shape == (32, 1, 16)


def test_one_input_channel():
    weight = np.ones((8, 9, 1))
    weight[3, 4] = 0
    assert find(weight) == "the reduction axis has 1 input channel: an N:M group needs 2"


def test_blocks_stay_within_the_groups_of_a_convolution():
    weight = pruned((12, 9, 16), NM(2, 4, 8), groups=2)
    assert find(weight, groups=2) == NM(2, 4, 8)
    assert isinstance(find(weight), NM) and find(weight).block == 1
    # Two blocks (4 and 2 channels) in each of two groups.
    assert kept_positions(pruned((12, 1, 16), NM(2, 4, 4), 2), NM(2, 4, 4), 2).shape == (4, 1, 8)


@pytest.mark.parametrize("channels, largest", [(1, 1), (3, 4), (10, 16), (48, 64), (100, 64)])
def test_the_block_is_not_larger_than_needed(channels, largest):
    weight = pruned((channels, 1, 64), NM(2, 4, 64))
    assert find(weight) == NM(2, 4, largest) == NM(2, 4, 64).within(channels)


def test_near_miss_says_how_near():
    weight = pruned((1024, 1, 256), NM(2, 4), seed=3)
    for channel in range(12):
        base = 4 * channel
        weight[channel, 0, np.flatnonzero(weight[channel, 0, base : base + 4] == 0)[0] + base] = 1
    found = find(weight)
    assert found == NearMiss(NM(2, 4), 12, 65536, 3)
    assert str(found) == (
        "99.98 % of groups are 2:4; 12 groups of 65,536 have 3 non-zeros: "
        "prune them with nm{n=2,m=4,block=1} or retrain"
    )


@pytest.mark.parametrize("text", ["2:4x32", "1:4", "3:4", "6:8x4", "7:16"])
def test_one_bad_group_is_a_near_miss_of_the_pattern(text):
    nm = NM.parse(text)
    weight = pruned((512, 1, 256), nm)
    weight[5, 0, : nm.m] = 1
    found = find(weight)
    assert isinstance(found, NearMiss) and (found.nm, found.violations, found.worst) == (nm, 1, nm.m)
    assert "1 group of" in str(found) and " has " in str(found) and "100" not in str(found).split(" %")[0]


@pytest.mark.parametrize("text", ["2:4x32", "1:4", "2:4x4", "6:8"])
def test_a_cover_is_exact_and_keeps_little_more(text):
    nm = NM.parse(text)
    weight = pruned((512, 1, 256), nm)
    for row in (5, 70, 200):
        group = weight[row, 0, 8 * row % 256 :][: nm.m]
        group[np.flatnonzero(group == 0)[0]] = 1
    near = find(weight)
    found = cover(weight, near)
    assert isinstance(near, NearMiss) and fits(weight, found)
    assert found.block == nm.block
    assert nm.kept_fraction(256) < found.kept_fraction(256) <= nm.kept_fraction(256) + 2 / 60
    assert not fits(weight, NM(found.n - 1, found.m, found.block))


def test_nothing_covers_what_fills_its_groups():
    weight = pruned((512, 1, 16), NM(2, 4))
    weight[0] = 1
    near = find(weight)
    assert isinstance(near, NearMiss) and cover(weight, near) is None


def test_wrong_axis_is_named():
    weight = pruned((96, 1, 64), NM(2, 4)).transpose(2, 1, 0)
    expected = (
        "the pattern 2:4 runs along output channels; it must run along the input channels: "
        "prune along dim 1 of a torch weight [out, in]"
    )
    assert find(weight) == expected
    grouped = np.concatenate([weight, weight])
    assert find(grouped, groups=2) == expected


def test_output_channels_of_zeros_are_no_pattern_along_outputs():
    weight = np.random.default_rng(0).standard_normal((96, 1, 64)).astype(np.float32)
    weight[::3] = 0
    assert find(weight) == (
        "32 of 96 output channels have only zeros: cut them out of the network before the export; of the "
        "others, no weight is zero"
    )


@pytest.mark.parametrize("block", [1, 4])
def test_a_pattern_beside_output_channels_of_zeros(block):
    weight = pruned((96, 1, 64), NM(2, 4, block))
    weight[:48] = 0
    weight[50:53] = 0
    assert find(weight) == NM(2, 4, block)
    weight[60, 0, :8] = 1
    assert find(weight).startswith("51 of 96 output channels have only zeros: cut") and "2:4" in find(weight)


def test_a_soft_mask_that_never_finished():
    weight = pruned((64, 1, 64), NM(2, 4, 16))
    soft = np.where(weight == 0, np.float32(1e-6), weight)
    assert find(soft) == "no weight is zero" and unfinished(weight) is None
    assert str(unfinished(soft)) == (
        "50.0 % of the weights are not zero but below 0.0001 of the root mean square, as a soft mask leaves "
        "them: make them zero before the export or with nm{n=2,m=4,block=16}; then the pattern is 2:4x16"
    )
    soft[0, 0, 0] = np.inf
    assert unfinished(soft) is None, "a weight that is not finite says nothing of the others"


def test_taps_flattened_with_the_inputs_are_named():
    flat = pruned((64, 1, 36 * 9), NM(2, 4))
    weight = flat.reshape(64, 36, 9).transpose(0, 2, 1)
    assert find(weight).startswith(
        "the pattern 2:4 runs along input channels and kernel taps flattened together;"
    )


@pytest.mark.parametrize("text", ["2:4", "1:8", "2:4x32", "63:64x64"])
def test_text_round_trip(text):
    assert str(NM.parse(text)) == text


def test_block_1_is_not_spelled():
    assert str(NM.parse("2:4x1")) == "2:4"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4, 4), "1 <= n < m is required, found n=4, m=4"),
        ((0, 4), "1 <= n < m is required, found n=0, m=4"),
        ((2, 65), "m is at most 64, found m=65; choose shorter groups"),
        ((2, 4, 5), "block must be one of 1, 4, 8, 16, 32, 64, found block=5"),
        ((2.0, 4), "n must be an integer, found 2.0"),
        ((True, 4), "n must be an integer, found True"),
    ],
)
def test_bad_patterns(arguments, message):
    with pytest.raises(PassError, match="N:M pattern: " + message):
        NM(*arguments)


@pytest.mark.parametrize("text", ["2of4", "2:4x", "", "2:4:8", "-1:4"])
def test_bad_text(text):
    with pytest.raises(PassError, match=r"required n:m or n:mxblock, found .*; write 2:4 or 2:4x32"):
        NM.parse(text)


def test_bad_weights():
    with pytest.raises(PassError, match=r"a non-empty weight \[out, taps, in\] is required, found \(4, 4\)"):
        find(np.ones((4, 4)))
    with pytest.raises(PassError, match="out must be a multiple of groups, found out=4, groups=3"):
        find(np.ones((4, 1, 4)), groups=3)
    with pytest.raises(
        PassError, match="a weight with the pattern 2:4 is required; 1 of 4 groups have more than 2"
    ):
        kept_positions(np.eye(4)[:, None] + np.eye(4, 1)[..., None] * [[1, 1, 1, 0]], NM(2, 4))
    with pytest.raises(PassError, match="2:4 is required; its 3 input channels are fewer than m=4"):
        kept_positions(np.eye(3)[:, None], NM(2, 4))
    assert not fits(np.eye(3)[:, None], NM(2, 4))
