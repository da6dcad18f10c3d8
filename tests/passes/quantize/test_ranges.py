"""Each range method against an independent account of what it promises."""

import itertools

import numpy as np
import pytest
import scipy.stats

from sparsec.passes.quantize.grid import symmetric, unsigned
from sparsec.passes.quantize.ranges import BINS, EMPTY, LEAST, LEVELS, RANGES, STEPS, Histogram, divergence

RNG = np.random.default_rng(0)
SAMPLES = {
    "normal": RNG.standard_normal(50_000),
    "relu": np.maximum(RNG.standard_normal(50_000), 0),
    "heavy tails": RNG.standard_t(2, 50_000),
    "skewed": RNG.exponential(size=50_000) - 0.2,
    "negative": -RNG.exponential(size=50_000) - 1,
}


def histogram(values):
    return Histogram.of(values, values.min(), values.max())


@pytest.mark.parametrize("values", SAMPLES.values(), ids=SAMPLES)
def test_every_range_holds_zero_and_lies_in_what_was_seen(values):
    for method in RANGES.values():
        low, high = method(histogram(values))
        assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
        assert low < high


@pytest.mark.parametrize("values", SAMPLES.values(), ids=SAMPLES)
def test_percentile_is_numpys(values):
    found = histogram(values)
    width = (found.high - found.low) / BINS
    expected = np.percentile(values, [0.005, 99.995], method="inverted_cdf")
    low, high = RANGES["percentile"](found)
    assert abs(low - min(expected[0], 0)) <= 1.01 * width
    assert abs(high - max(expected[1], 0)) <= 1.01 * width


def square_error(values, low, high):
    grid = unsigned(low, high)
    return float(np.square(grid.nearest(values) - values).mean())


@pytest.mark.parametrize("values", SAMPLES.values(), ids=SAMPLES)
def test_mse_is_near_the_best_of_all_pairs(values):
    values = values[:5000]
    parts = np.linspace(1, LEAST, STEPS)[::3]
    lows, highs = (edge * parts if edge else [0.0] for edge in (min(values.min(), 0), max(values.max(), 0)))
    best = min(square_error(values, low, high) for low, high in itertools.product(lows, highs))
    assert square_error(values, *RANGES["mse"](histogram(values))) <= 1.1 * best


def test_mse_clips_what_is_rare():
    values = SAMPLES["heavy tails"]
    low, high = RANGES["mse"](histogram(values))
    assert values.min() < low and high < values.max()
    assert square_error(values, low, high) < square_error(values, values.min(), values.max())


@pytest.mark.parametrize(("first", "last"), [(0, BINS), (100, 1500), (512, 512 + LEVELS)])
def test_divergence_is_scipys(first, last):
    counts = np.histogram(SAMPLES["normal"], BINS)[0].astype(float)
    counts[[first, last - 1]] += 1  # so that Q has something where P is given what was clipped
    p = counts[first:last].copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    q = np.zeros(last - first)
    for level in range(LEVELS):
        at = [i for i in range(last - first) if i * LEVELS // (last - first) == level and counts[first + i]]
        for i in at:
            q[i] = counts[first:last][at].sum() / len(at)
    q[q == 0] = EMPTY * q.sum()
    q[p == 0] = 0
    assert divergence(counts, first, last) == pytest.approx(scipy.stats.entropy(p, q), rel=1e-9)


def test_entropy_takes_the_window_of_least_divergence():
    values = np.append(RNG.standard_normal(50_000), [40.0, -30.0])
    low, high = RANGES["entropy"](histogram(values))
    assert -30 < low < -3 and 3 < high < 40


def test_grids_are_those_of_quantize_linear(run_ort, model_of):
    model = model_of(
        "q = QuantizeLinear(x, scale, zero) y = DequantizeLinear(q, scale, zero)",
        "float[n] x, float scale, uint8 zero",
        "float[n] y",
    )
    x = np.concatenate([RNG.standard_normal(500) * 3, np.linspace(-9, 9, 73)]).astype(np.float32)
    for low, high in ((-1, 2), (0, 7), (-5, 0), (0.5, 3)):
        grid = unsigned(low, high)
        feeds = {"x": x, "scale": np.array(grid.scale), "zero": np.array(grid.zero, np.uint8)}
        expected = run_ort(model, feeds)
        np.testing.assert_array_equal(grid.nearest(x).astype(np.float32), expected)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.0, np.inf), (np.nan, 1.0)])
def test_no_grid_without_a_range(low, high):
    with pytest.raises(ValueError, match="no 8-bit grid covers"):
        unsigned(low, high)


def test_a_row_of_zeros_has_a_grid():
    weight = np.array([[0.0, 0.0], [1.0, -2.0]])
    grid = symmetric(weight)
    np.testing.assert_array_equal(grid.quantise(weight), [[0, 0], [64, -127]])
    assert grid.scale[0] == grid.scale[1]
    assert symmetric(np.zeros((3, 2))).scale[2] == 1
