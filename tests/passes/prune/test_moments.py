"""The least-squares problem against NumPy's and SciPy's solvers on the rows themselves."""

import numpy as np
import pytest

from sparsec.passes.prune import Moments, pose


def fill(x, y, cuts=(7, 31)):
    moments = Moments.empty(x.shape[1], y.shape[1])
    for part_x, part_y in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
        moments.add(part_x.astype(np.float64), part_y)
    return moments


@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("damping", [1e-9, 0.1])
def test_the_target_is_the_ridge_solution_about_the_dense_weight(layer, free_bias, damping):
    x, y, dense, bias = layer(5, 17)
    problem = pose(fill(x, y), dense, free_bias=free_bias, bias=bias, damping=damping)
    inputs, wanted = (x - x.mean(0), y - y.mean(0)) if free_bias else (x, y - bias)
    ridge = damping * np.mean(np.square(inputs).sum(axis=0))
    stacked = np.vstack([inputs, np.sqrt(ridge) * np.eye(17)])
    goal = np.vstack([wanted, np.sqrt(ridge) * dense.T])
    target, *_ = np.linalg.lstsq(stacked, goal, rcond=None)
    np.testing.assert_allclose(problem.target, target.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(problem.mean, x.mean(0))
    np.testing.assert_allclose(problem.variance, x.var(0))


@pytest.mark.parametrize("free_bias", [True, False])
def test_the_error_is_that_of_the_outputs(layer, free_bias):
    x, y, dense, bias = layer(4, 9)
    problem = pose(fill(x, y), dense, free_bias=free_bias, bias=bias, damping=1e-12)
    weight = dense * (np.arange(9) % 2)
    offset = y.mean(0) - weight @ x.mean(0) if free_bias else bias
    residual = np.square(x @ weight.T + offset - y).sum() / np.square(y - y.mean(0)).sum()
    assert problem.error(weight) == pytest.approx(residual, rel=1e-6)


def test_an_input_that_never_varies_needs_no_exception():
    x, y = np.ones((8, 4)), np.zeros((8, 3))
    problem = pose(fill(x, y, (3,)), np.ones((3, 4)), free_bias=True, bias=np.zeros(3), damping=0.01)
    np.testing.assert_allclose(problem.target, 1.0)  # nothing is learnt: the dense weight stays


def test_parts_and_merging(layer):
    x, y, *_ = layer(6, 5)
    whole, half = fill(x, y), fill(x[:100], y[:100])
    half.merge(fill(x[100:], y[100:]))
    part = whole.part(slice(2, 4))
    for name in ("count", "x", "xx", "y", "yy", "yx"):
        np.testing.assert_allclose(getattr(half, name), getattr(whole, name), rtol=1e-12)
        np.testing.assert_allclose(getattr(part, name), getattr(fill(x, y[:, 2:4]), name), rtol=1e-12)


def test_the_damping_follows_from_the_number_of_rows(layer):
    x, y, dense, bias = layer(3, 10)
    given, chosen = (
        pose(fill(x, y), dense, free_bias=True, bias=bias, damping=damping) for damping in (10 / 200, None)
    )
    np.testing.assert_allclose(given.gram, chosen.gram)
