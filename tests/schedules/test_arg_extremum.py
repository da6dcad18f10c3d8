"""ArgMax and ArgMin against ONNX Runtime: any axis and size, ties, NaN, infinities, integers."""

import numpy as np
import onnxruntime
import pytest
import tvm
from onnx import helper

from sparsec.schedules import math
from sparsec.schedules.arg_extremum import arg_extremum
from sparsec.schedules.target import X86_LEVELS


def kernel(x: np.ndarray, axis: int, largest: bool, last: bool) -> np.ndarray:
    math.install()
    func = arg_extremum(x.shape, str(x.dtype), axis, largest, last).with_attr("global_symbol", "main")
    library = tvm.tirx.build(func, target=X86_LEVELS["v3"].tvm_target(), pipeline="s_tir")
    y = tvm.runtime.tensor(np.full(x.max(axis).shape, -1))
    library["main"](tvm.runtime.tensor(x), y)
    return y.numpy()


def onnx_runtime(x: np.ndarray, axis: int, largest: bool, last: bool) -> np.ndarray:
    op = "ArgMax" if largest else "ArgMin"
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], axis=axis, keepdims=0, select_last_index=int(last))],
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", 7, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def awkward(shape: tuple, dtype: str) -> np.ndarray:
    """Many ties; for floats some NaN and infinities, in the first place, too."""
    rng = np.random.default_rng(sum(shape))
    x = rng.integers(0, 9, shape)
    if dtype.startswith("float"):
        x = x.astype(dtype)
        for value in (np.nan, np.inf, -np.inf):
            x[rng.random(shape) < 0.03] = value
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize("size", [1, 7, 16, 33, 129])
def test_index_is_onnx_runtime_s(size, dtype):
    if dtype == "float32":
        cases = [(largest, last) for largest in (True, False) for last in (True, False)]
    else:
        cases = [(size % 2 == 0, size > 16)]
    for shape, axis in (((5, size), 1), ((size, 19), 0), ((2, size, 3), 1)):
        x = awkward(shape, dtype)
        for largest, last in cases:
            if dtype == "uint8" and not largest:
                continue  # ONNX Runtime has no such ArgMin
            want = onnx_runtime(x, axis, largest, last)
            np.testing.assert_array_equal(kernel(x, axis, largest, last), want, err_msg=f"{shape} {axis}")


def test_row_without_a_number_above_the_start():
    x = np.float32([[-np.inf] * 40, [np.nan] * 40, [-np.inf] + [np.nan] * 39])
    for last in (True, False):
        np.testing.assert_array_equal(kernel(x, 1, True, last), onnx_runtime(x, 1, True, last))


def test_an_axis_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="arg_extremum: required an axis from -2 to 1, found 2"):
        arg_extremum((3, 4), "float32", 2)
