"""Max and average pools against ONNX Runtime: borders, rounding up, dilations, NaN and infinities."""

import numpy as np
import pytest

RNG = np.random.default_rng(5)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


POOLS = {
    "plain": {"kernel_shape": [2, 2]},
    "one pixel": {"kernel_shape": [1, 1]},
    "strides": {"kernel_shape": [3, 2], "strides": [2, 3]},
    "strides beyond the kernel": {"kernel_shape": [2, 1], "strides": [3, 4]},
    "asymmetric pads": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 2, 1]},
    "ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    "ceil, pads": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    "ceil, asymmetric pads": {
        "kernel_shape": [3, 2],
        "strides": [3, 3],
        "ceil_mode": 1,
        "pads": [1, 1, 0, 0],
    },
    "dilations": {"kernel_shape": [2, 3], "dilations": [3, 2]},
    "dilations, pads, ceil": {
        "kernel_shape": [2, 2],
        "dilations": [2, 3],
        "strides": [2, 2],
        "pads": [1, 1, 0, 1],
        "ceil_mode": 1,
    },
    "same upper": {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "same lower": {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    "valid": {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"},
}
SIZES = [(1, 1, 7, 9), (2, 17, 8, 7), (1, 33, 17, 6)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("case", POOLS)
def test_max_pool(case, shape, single_op, same_as_ort):
    feeds = {"x": array(*shape)}
    same_as_ort(single_op("MaxPool", feeds, **POOLS[case]), feeds, relative=0, absolute=0)


@pytest.mark.parametrize("shape", SIZES[:2], ids=str)
@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("case", POOLS)
def test_average_pool(case, include, shape, single_op, same_as_ort):
    feeds = {"x": array(*shape)}
    same_as_ort(single_op("AveragePool", feeds, count_include_pad=include, **POOLS[case]), feeds)


SIGNALS = {
    "plain": {"kernel_shape": [3], "strides": [2]},
    "pads": {"kernel_shape": [3], "strides": [2], "pads": [1, 0]},
    "ceil": {"kernel_shape": [4], "strides": [3], "ceil_mode": 1},
    "dilations": {"kernel_shape": [3], "dilations": [4]},
}


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("case", SIGNALS)
def test_signals(case, op, single_op, same_as_ort):
    feeds = {"x": array(2, 17, 33)}
    same_as_ort(single_op(op, feeds, **SIGNALS[case]), feeds)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_volumes(op, single_op, same_as_ort):
    feeds = {"x": array(1, 3, 5, 6, 7)}
    same_as_ort(
        single_op(op, feeds, kernel_shape=[2, 3, 2], strides=[2, 1, 3], pads=[1, 0, 1, 0, 1, 0]), feeds
    )


@pytest.mark.parametrize("op", ["GlobalMaxPool", "GlobalAveragePool"])
@pytest.mark.parametrize("shape", [(1, 17, 7, 7), (2, 3, 33), (1, 5, 1, 1), (2, 3, 4, 5, 6)], ids=str)
def test_global_pools(op, shape, single_op, same_as_ort):
    feeds = {"x": array(*shape)}
    same_as_ort(single_op(op, feeds), feeds)


def test_max_pool_of_minus_infinity(single_op, same_as_ort):
    x = np.full((1, 3, 7, 7), -np.inf, np.float32)
    x[0, 1] = np.finfo(np.float32).min
    same_as_ort(single_op("MaxPool", {"x": x}, kernel_shape=[3, 3], strides=[2, 2]), {"x": x})


def test_max_pool_of_minus_infinity_at_the_border(single_op, run_graph):
    """The border wins over -Inf with the least number there is, as in ONNX Runtime's corners."""
    x = np.full((1, 3, 7, 7), -np.inf, np.float32)
    x[0, 1] = -1e30
    model = single_op("MaxPool", {"x": x}, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    found = run_graph(model, {"x": x}).outputs["y"]
    assert (found[0, 1] == np.float32(-1e30)).all()
    assert (found[0, ::2] <= np.finfo(np.float32).min).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_average_pool_of_specials(value, single_op, same_as_ort):
    feeds = {"x": array(1, 17, 7, 7)}
    feeds["x"][0, 3, 2, 2] = value
    same_as_ort(single_op("AveragePool", feeds, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), feeds)


@pytest.mark.parametrize("place", [(0, 0), (2, 2), (3, 4)])
def test_max_pool_hands_nan_on(place, single_op, run_graph):
    """A window that holds NaN is NaN, as in torch.  ONNX Runtime's answer depends on where NaN stands."""
    import torch

    feeds = {"x": array(1, 17, 7, 7)}
    feeds["x"][0, 3][place] = np.nan
    found = run_graph(single_op("MaxPool", feeds, kernel_shape=[2, 2], strides=[2, 2]), feeds).outputs["y"]
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(feeds["x"]), 2).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float64", "int8", "uint8"])
def test_max_pool_of_other_types(dtype, single_op, same_as_ort):
    feeds = {"x": RNG.integers(0, 100, (1, 3, 7, 8)).astype(dtype)}
    same_as_ort(single_op("MaxPool", feeds, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]), feeds)
