"""Small layers with correlated inputs, and what calibration sums up of them."""

import numpy as np
import pytest

from sparsec.passes.prune import Moments, pose


@pytest.fixture
def layer():
    """``layer(rows, K, ...)`` -> (x `[samples, K]`, y `[samples, N]`, dense weight, bias)."""

    def make(outputs, inputs, samples=200, seed=0, noise=0.1):
        rng = np.random.default_rng(seed)
        mix = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs) + 0.5 * np.eye(inputs)
        x = rng.standard_normal((samples, inputs)) @ mix + rng.standard_normal(inputs)
        weight, bias = rng.standard_normal((outputs, inputs)), rng.standard_normal(outputs)
        y = x @ weight.T + bias + noise * rng.standard_normal((samples, outputs))
        return x, y, weight, bias

    return make


@pytest.fixture
def problem(layer):
    """``problem(N, K)``: the least-squares problem of such a layer, its bias free."""

    def make(outputs, inputs, seed=0, damping=0.01, free_bias=True):
        x, y, weight, bias = layer(outputs, inputs, seed=seed)
        moments = Moments.empty(inputs, outputs)
        moments.add(x, y)
        return pose(moments, weight, free_bias=free_bias, bias=bias, damping=damping)

    return make
