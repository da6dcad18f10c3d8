"""Integer layers and what stands between them as kernels: ONNX Runtime's bytes."""

import numpy as np
import pytest
from quantised_models import Quantised


def normal(rng, shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="session")
def same_bytes(run_graph, ort_run):
    """``same_bytes(model, feeds, level=None) -> plan``: every output equal, floats to 1e-5 of the scale."""

    def check(model, feeds, level=None):
        found = run_graph(model, feeds, level=level)
        for name, want in ort_run(model.SerializeToString(), feeds).items():
            got = found.outputs[name]
            assert got.dtype == want.dtype
            if want.dtype.kind == "f":
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=name)
            else:
                assert np.ptp(want.astype(int)) > 20, "the network says nothing"
                np.testing.assert_array_equal(got, want, err_msg=name)
        return found.plan

    return check


def images(dtype, zero, least) -> Quantised:
    """Convolutions of every kind, a residual, pools and a classifier; odd sizes."""
    net = Quantised()
    x = net.around(net.input([1, 3, 9, 11]), 0.03, zero, dtype)
    w = net.weight([17, 3, 3, 3], 0)
    stem = net.op("Conv", x, w, net.bias(17, 0.03, w), pads=[1, 1, 1, 1])
    stem = net.around(net.op("Relu", stem), 0.11, least, dtype)
    w = net.weight([17, 17, 1, 1], 0)
    branch = net.around(net.op("Conv", stem, w, net.bias(17, 0.11, w)), 0.8, zero, dtype)
    total = net.around(net.op("Add", branch, stem), 0.7, zero, dtype)
    w = net.weight([17, 1, 3, 3], 0)
    deep = net.op("Conv", total, w, group=17, strides=[2, 2], pads=[1, 0, 1, 0])
    deep = net.op("Clip", deep, net.constant(np.float32(0)), net.constant(np.float32(6)))
    deep = net.around(deep, 6 / 255, least, dtype)
    pooled = net.op("MaxPool", total, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 0])
    both = net.around(net.op("Concat", deep, net.around(pooled, 0.7, zero, dtype), axis=1), 0.6, zero, dtype)
    mean = net.around(net.op("GlobalAveragePool", both), 0.3, zero, dtype)
    flat = net.around(net.op("Flatten", mean), 0.3, zero, dtype)
    w = net.weight([10, 34], 0)
    y = net.op("Gemm", flat, w, net.bias(10, 0.3, w), transB=1)
    average = net.op("AveragePool", total, kernel_shape=[3, 2])
    net.results = (net.integers(y, 0.4, zero, dtype), both, net.integers(average, 0.4, zero, dtype))
    return net


@pytest.mark.parametrize(("dtype", "zero", "least"), [(np.uint8, 255, 0), (np.int8, 6, -128)])
def test_a_network_for_images(same_bytes, dtype, zero, least):
    net = images(dtype, zero, least)
    # On a level without products of integers: the arithmetic is the same on all.
    plan = same_bytes(net.model(*net.results), {"input0": 2 * normal(net.rng, (1, 3, 9, 11))}, "v3")
    # Every layer takes what follows it along: rounding, limits and the residual sum.
    layers = ("conv", "depthwise", "gemm")
    assert sum(any(name in step.symbol for name in layers) for step in plan.steps) == 4
    assert not any(step.symbol.startswith(("quantise", "fused_product")) for step in plan.steps)


def test_a_network_for_tokens(same_bytes):
    """Rows of 1 to 33 values, a residual of integers and floats, GELU-like floats between layers."""
    net = Quantised()
    x = net.around(net.input([1, 7, 33]), 0.03, 120)
    up = net.op("MatMul", x, net.weight([33, 65], 1))
    up = net.around(net.op("Add", up, net.constant(normal(net.rng, 65))), 0.4, 131)
    up = net.around(net.op("Mul", up, net.op("Sigmoid", up)), 0.2, 12)
    down = net.around(net.op("MatMul", up, net.weight([65, 33])), 0.9, 128)
    total = net.op("Add", down, net.op("Mul", x, x))
    same_bytes(net.model(total, net.integers(down, 1.1, 120)), {"input0": normal(net.rng, (1, 7, 33))})


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 2, 1]])
def test_dynamic_quantisation(same_bytes, pads):
    """The zero point of the input is known when the model runs, also in the padding."""
    net = Quantised()
    x = net.input([1, 5, 7, 8])
    codes = net.op("DynamicQuantizeLinear", x)
    node = net.nodes[-1]
    node.output.extend(["scale", "zero"])
    weight = net.constant(net.rng.integers(0, 256, (6, 5, 3, 2)).astype(np.uint8))
    total = net.op("ConvInteger", codes, weight, "zero", net.constant(np.uint8(131)), pads=pads)
    rows = net.op("Reshape", codes, net.constant(np.array([35, 8])))
    matrix = net.constant(net.rng.integers(-128, 128, (8, 9)).astype(np.int8))
    product = net.op("MatMulInteger", rows, matrix, "zero")
    real = net.op("Mul", net.op("Cast", product, to=1), "scale")
    plan = same_bytes(net.model(total, real), {"input0": normal(net.rng, (1, 5, 7, 8)) + 0.7})
    assert sum("conv" in step.symbol or "gemm" in step.symbol for step in plan.steps) == 3


@pytest.mark.parametrize("share", [0, None], ids=["all bytes", "P is real"])
def test_attention(run_graph, ort_run, share):
    """One kernel; rounding of P may fall on the other side, which is one step of it for each key at most."""
    net = Quantised()
    q, k, v = (net.around(net.input([1, 7, 2, 24]), 0.03, zero) for zero in (120, 3, 255))
    q, v = (net.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, v))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 3, 1]))
    scores = net.op("Div", net.around(scores, 0.05, 99), net.constant(np.float32(1.7)))
    scores = net.op("Add", scores, net.constant(normal(net.rng, (1, 1, 1, 7))))
    p = net.op("Softmax", scores, axis=-1)
    p = p if share is None else net.around(p, 1 / 255, share)
    y = net.op("Transpose", net.around(net.op("MatMul", p, v), 0.02, 120), perm=[0, 2, 1, 3])
    feeds = {f"input{i}": normal(net.rng, (1, 7, 2, 24)) for i in range(3)}
    model = net.model(y)
    found = run_graph(model, feeds)
    (want,) = ort_run(model.SerializeToString(), feeds).values()
    steps = np.rint((found.outputs[y] - want) / 0.02)
    assert np.abs(steps).max() <= 1 and (steps != 0).mean() < 0.05 and np.ptp(want) > 1
    symbols = [step.symbol for step in found.plan.steps]
    assert sum("attention" in s for s in symbols) == 1 and not any("matmul" in s for s in symbols)
    stored = {ref.dtype for step in found.plan.steps if step.symbol == "attention" for ref in step.args[:3]}
    assert stored == ({"float32"} if share is None else {"uint8"})
