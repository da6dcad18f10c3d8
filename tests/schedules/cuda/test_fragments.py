"""Weights in fragment order: nothing is lost, and torch packs the same metadata."""

import numpy as np
import pytest
import torch

from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.fragments import NUMBERS

HALF = NUMBERS["float16"]

SIZES = [(1, 8), (15, 64), (16, 72), (17, 128), (33, 136), (129, 4)]


def weight_2of4(rng, n, k, dtype=np.float32):
    weight = rng.standard_normal((n, k // 4, 4)).astype(dtype)
    order = np.argsort(rng.random(weight.shape), axis=-1)
    return np.where(order < 2, weight, dtype(0)).reshape(n, k)


@pytest.mark.parametrize("n, k", SIZES)
@pytest.mark.parametrize(
    "sparse, number",
    [(False, "float16"), (True, "float16"), (False, "bfloat16"), (True, "bfloat16"), (False, "tf32")],
)
def test_a_packed_weight_unpacks_to_itself_rounded(n, k, sparse, number):
    rng = np.random.default_rng(n * k)
    weight = weight_2of4(rng, n, k) if sparse else rng.standard_normal((n, k)).astype(np.float32)
    arrays = fragments.pack(sparse, weight, NUMBERS[number])
    assert [(a.shape, str(a.dtype)) for a in arrays] == fragments.shapes(sparse, n, k, NUMBERS[number])
    torch_dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(number)
    found = fragments.unpack(sparse, arrays, n, k, NUMBERS[number])
    if torch_dtype:
        np.testing.assert_array_equal(found, torch.from_numpy(weight).to(torch_dtype).float().numpy())
    else:
        assert (np.abs(found - weight) <= np.abs(weight) * 2.0**-11).all() and (found != weight).any()
        assert not (found.view(np.uint32) & 0x1FFF).any()


def test_every_pair_of_indices_ascends():
    """As mma.sp::ordered_metadata requires, in padding too, and where a group keeps less than two."""
    weight = weight_2of4(np.random.default_rng(0), 17, 72)
    weight[:, :32] = 0
    weight[3, 1] = 1
    _, words = fragments.pack(True, weight, HALF)
    indices = np.stack([words >> np.uint32(2 * i) & 3 for i in range(16)], axis=-1).reshape(-1, 2)
    assert (indices[:, 0] < indices[:, 1]).all()


def test_kept_zeros_are_stored():
    weight = weight_2of4(np.random.default_rng(1), 16, 64)
    kept = weight != 0
    weight[kept & (np.random.default_rng(2).random(weight.shape) < 0.3)] = 0
    plain = fragments.pack(True, np.where(kept, np.float32(1), np.float32(0)), HALF)
    np.testing.assert_array_equal(fragments.pack(True, weight, HALF, kept)[1], plain[1])


def test_three_of_four_are_refused():
    weight = np.zeros((16, 64), np.float32)
    weight[5, 8:11] = 1
    with pytest.raises(ValueError, match="at most 2 of 4 kept positions .* found 3 in block 5, .* group 2"):
        fragments.pack(True, weight, HALF)


def test_words_of_metadata_are_those_of_torch():
    """torch orders words for the same instruction, its rows and its words in another order: CUTLASS's."""
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    weight = weight_2of4(np.random.default_rng(3), 64, 128, np.float16)
    _, reordered = conversions.sparse_semi_structured_from_dense_cutlass(torch.from_numpy(weight))
    theirs = np.sort(reordered.contiguous().numpy().view(np.uint32).ravel())
    _, words = fragments.pack(True, weight.astype(np.float32), HALF)
    np.testing.assert_array_equal(np.sort(words.ravel()), theirs)


def test_which_weights_fit():
    weight = weight_2of4(np.random.default_rng(4), 16, 64)
    assert fragments.fits(weight) and fragments.fits(weight[:, :62].reshape(16, 2, 31)[:, :, :3] * 0)
    weight[7, 20:23] = 1
    assert not fragments.fits(weight)
