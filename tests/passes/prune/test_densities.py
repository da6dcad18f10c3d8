"""The share of each layer against its definition, by loops over all weights."""

import numpy as np
import pytest

from sparsec.passes.prune.densities import DENSITIES, LEAST, lamp_score

RNG = np.random.default_rng(0)
SHAPES = ((1.0, (8, 9, 4)), (0.2, (32, 1, 48)), (3.0, (10, 1, 7)))
WEIGHTS = [scale * RNG.standard_normal(shape) for scale, shape in SHAPES]


def test_lamp_is_the_square_over_all_that_are_no_smaller():
    flat = WEIGHTS[0].ravel()
    expected = [w * w / sum(v * v for v in flat if abs(v) >= abs(w)) for w in flat]
    np.testing.assert_allclose(lamp_score(WEIGHTS[0]).ravel(), expected)


@pytest.mark.parametrize("name, score", [("global", np.abs), ("lamp", lamp_score)])
def test_the_best_of_all_layers_stay(name, score):
    scores = [score(w).ravel() for w in WEIGHTS]
    total = sum(len(s) for s in scores)
    bar = np.sort(np.concatenate(scores))[::-1][round(0.4 * total) - 1]
    expected = [np.mean(s >= bar) for s in scores]
    assert min(expected) > LEAST
    np.testing.assert_allclose(DENSITIES[name](WEIGHTS, 0.4), expected)


def test_no_layer_is_cut_off():
    weights = [WEIGHTS[0], 1e-6 * WEIGHTS[1]]
    shares = DENSITIES["global"](weights, 0.1)
    assert shares[1] == pytest.approx(LEAST, abs=1 / weights[1].size)
    kept = sum(share * w.size for share, w in zip(shares, weights, strict=True))
    assert kept == pytest.approx(0.1 * sum(w.size for w in weights), abs=1)


def test_erk_is_proportional_and_small_layers_stay_whole():
    shares = DENSITIES["erk"](WEIGHTS, 0.5)
    raw = np.array([sum(w.shape) / w.size for w in WEIGHTS])
    assert shares[2] == 1 and (shares <= 1).all()
    part = shares < 1
    np.testing.assert_allclose(shares[part] / raw[part], (shares[part] / raw[part])[0])
    assert sum(s * w.size for s, w in zip(shares, WEIGHTS, strict=True)) == pytest.approx(
        0.5 * sum(w.size for w in WEIGHTS)
    )
