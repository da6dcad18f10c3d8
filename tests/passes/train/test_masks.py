"""Masks: the same as the NumPy pass's, and every pattern exactly filled at awkward sizes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sparsec.passes import nm_prune  # noqa: E402
from sparsec.passes.nm_pattern import NM  # noqa: E402
from sparsec.passes.nm_structure import fits  # noqa: E402
from sparsec.passes.prune import Layout, Unstructured  # noqa: E402
from sparsec.passes.train.masks import best, canonical, stored  # noqa: E402


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pattern", ["2:4", "1:4x4", "2:8x32", "3:7x16", "4:16x64"])
@pytest.mark.parametrize("shape", [(33, 1, 129), (48, 9, 16), (51, 2, 31)])
def test_best_is_the_mask_of_the_pass_by_energy(shape, pattern, groups):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[:, :, 3] = 0  # equal scores: the lower input stays
    nm = NM.parse(pattern)
    keep = best(torch.tensor(weight).double().square(), nm, groups).numpy()
    np.testing.assert_array_equal(keep, nm_prune.mask(weight, nm, groups, "energy"))
    assert fits(weight * keep, nm, groups)


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.371])
def test_unstructured_is_that_of_the_pruning_methods(zeros, block):
    score, pattern = np.random.default_rng(0).random((31, 3, 17)), Unstructured(zeros, block)
    layout = Layout.of(pattern, 31, 17, taps=3)
    expected = layout.spread(layout.best(score.reshape(31, -1)))
    keep = best(torch.tensor(score), pattern)
    np.testing.assert_array_equal(keep.numpy().reshape(31, -1), expected)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (7, 5, 3, 2), (7, 5, 1, 2, 3)])
def test_stored_turns_canonical_back(shape):
    weight = torch.randn(shape)
    assert canonical(weight).shape == (7, int(np.prod(shape[2:])), 5)
    assert torch.equal(stored(canonical(weight), weight), weight)
