"""Operators of every kind on a GPU, each against ONNX Runtime: one model holds them all."""

import re

import numpy as np
import pytest

from sparsec.runtime import load

# name -> its line in ONNX's text form; x is float[4,33], index is int64[7] in 0..3.
LINES = {
    "relu": "relu = Relu(x)",
    "erf": "erf = Erf(x)",
    "tanh": "tanh = Tanh(x)",
    "sigmoid": "sigmoid = Sigmoid(x)",
    "log": "positive = Exp(x) log = Log(positive)",
    "power": "absolute = Abs(x) power = Pow(absolute, x)",
    "sqrt": "square = Mul(x, x) sqrt = Sqrt(square)",
    "clip": "low = Constant<value_float = -0.5>() clip = Clip(x, low)",
    "where": "zero = Constant<value_float = 0.0>() chosen = Greater(x, zero) where = Where(chosen, x, zero)",
    "maximum": "turned = Neg(x) maximum = Max(x, turned)",
    "reduce_max": "reduce_max = ReduceMax<keepdims = 0>(x)",
    "mean": "one = Constant<value_ints = [1]>() mean = ReduceMean<keepdims = 1>(x, one)",
    "sum_of_columns": "rows = Constant<value_ints = [0]>() sum_of_columns = ReduceSum<keepdims = 0>(x, rows)",
    "softmax": "softmax = Softmax<axis = 1>(x)",
    "softmax_of_columns": "softmax_of_columns = Softmax<axis = 0>(x)",
    "log_softmax": "log_softmax = LogSoftmax<axis = 1>(x)",
    "arg_max": "arg_max = ArgMax<axis = 1, keepdims = 0>(x)",
    "arg_min_of_columns": "arg_min_of_columns = ArgMin<axis = 0, keepdims = 0, select_last_index = 1>(x)",
    "top_k": "five = Constant<value_ints = [5]>() top_k, top_at = TopK<axis = 1>(x, five)",
    "running_sum": "axis = Constant<value_int = 1>() running_sum = CumSum(x, axis)",
    "concat": "concat = Concat<axis = 1>(x, x)",
    "transpose": "transpose = Transpose<perm = [1, 0]>(x)",
    "product": "across = Transpose<perm = [1, 0]>(x) product = MatMul(x, across)",
    "gather": "gather = Gather<axis = 0>(x, index)",
    "slice": (
        "from = Constant<value_ints = [30]>() to = Constant<value_ints = [0]>() "
        "along = Constant<value_ints = [1]>() by = Constant<value_ints = [-3]>() "
        "slice = Slice(x, from, to, along, by)"
    ),
    "pad": "room = Constant<value_ints = [1, 0, 0, 2]>() pad = Pad(x, room)",
    "tile": "times = Constant<value_ints = [2, 1]>() tile = Tile(x, times)",
    "integers": "integers = Cast<to = 6>(x)",
}
NAMES = {"top_k": ("top_k", "top_at")}


@pytest.fixture(scope="module")
def everything(compile_for_gpu):
    import onnx

    outputs = [output for name in LINES for output in NAMES.get(name, (name,))]
    body = f"(float[4,33] x, int64[7] index) => ({', '.join(outputs)}) {{ {' '.join(LINES.values())} }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {body}')
    data = onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString()
    return data, compile_for_gpu(data)


def feeds() -> dict:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((4, 33), np.float32), "index": np.array([0, 3, -1, 2, 1, -4, 3])}


@pytest.mark.parametrize("order", range(3))
def test_each_is_right(order, everything, driver, ort_run):
    data, compiled = everything
    driver.be(compiled.emulated, order=order)
    with load(compiled.path) as model:
        found = model(feeds())
    for name, want in ort_run(data, feeds()).items():
        assert found[name].dtype == want.dtype, name
        if want.dtype.kind == "f":
            error = np.abs(found[name].astype(np.float64) - want).max()
            assert error <= 1e-5 * np.abs(want).max() + 1e-6, (name, error)
        else:
            np.testing.assert_array_equal(found[name], want, err_msg=name)


def test_not_a_number_stays(everything, driver, ort_run):
    """CUDA's max and min would drop it."""
    data, compiled = everything
    driver.be(compiled.emulated)
    given = feeds()
    given["x"][1, 17] = np.nan
    with load(compiled.path) as model:
        found = model(given)
    expected = ort_run(data, given)
    assert np.isnan(found["reduce_max"])  # as on CPUs; ONNX Runtime's depends on where the NaN is
    for name in ("relu", "clip", "maximum", "mean", "softmax", "running_sum", "sqrt", "gather"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(expected[name]), err_msg=name)


def test_nothing_is_fast_math(everything):
    _, compiled = everything
    for name in ("expf", "logf", "tanhf", "erff", "powf"):
        assert re.search(rf"\b{name}\(", compiled.source), name
        assert f"__{name}" not in compiled.source
    assert "__fdividef" not in compiled.source
