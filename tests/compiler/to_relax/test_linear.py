"""MatMul, Gemm, Conv and ConvTranspose against ONNX Runtime, at sizes that are no multiple of anything."""

import numpy as np
import onnx
import pytest

RNG = np.random.default_rng(11)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


# MatMul ------------------------------------------------------------------------------------------------

MATMULS = {
    "1x1x1": ((1, 1), (1, 1)),
    "1x17x33": ((1, 17), (17, 33)),
    "7x33x1": ((7, 33), (33, 1)),
    "33x7x17": ((33, 7), (7, 17)),
    "33x64x64": ((33, 64), (64, 64)),
    "one batch": ((3, 7, 17), (17, 33)),
    "two batches": ((2, 3, 7, 17), (17, 33)),
    "batches on both": ((2, 3, 7, 17), (2, 3, 17, 33)),
    "batch of B alone": ((7, 17), (3, 17, 33)),
    "broadcast inner": ((2, 1, 7, 17), (3, 17, 33)),
    "broadcast outer": ((1, 3, 7, 17), (2, 1, 17, 33)),
    "broadcast of ones": ((1, 7, 17), (5, 1, 17, 33)),
    "vector, matrix": ((17,), (17, 33)),
    "matrix, vector": ((7, 17), (17,)),
    "vector, vector": ((17,), (17,)),
    "vector, batch": ((17,), (3, 17, 33)),
    "batch, vector": ((2, 3, 7, 17), (17,)),
    "rank 5": ((2, 1, 3, 7, 17), (1, 2, 1, 17, 5)),
}


@pytest.mark.parametrize("constants", [(), ("b",), ("a",)], ids=["both dynamic", "B constant", "A constant"])
@pytest.mark.parametrize("case", MATMULS)
def test_matmul(case, constants, single_op, same_as_ort):
    a, b = (array(*shape) for shape in MATMULS[case])
    feeds = {"a": a, "b": b}
    model = single_op("MatMul", feeds, constants=constants)
    same_as_ort(model, {name: value for name, value in feeds.items() if name not in constants})


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint32", "int64"])
def test_matmul_of_other_types(dtype, single_op, same_as_ort):
    a, b = (RNG.integers(0, 50, shape).astype(dtype) for shape in ((7, 17), (17, 5)))
    for constants in ((), ("b",)):
        model = single_op("MatMul", {"a": a, "b": b}, constants=constants)
        same_as_ort(model, {"a": a, "b": b} if not constants else {"a": a})


@pytest.mark.parametrize("zeros", [0.7, 0.97])
def test_a_weight_of_mostly_zeros(zeros, text_graph, same_as_ort):
    """Scattered zeros under an epilogue, with and without rows enough for lanes."""
    for rows in (1, 33):
        weights = {"w": array(130, 70), "b": array(70)}
        weights["w"][RNG.random((130, 70)) < zeros] = 0
        model = text_graph(f"(float[{rows},130] x) => (y) {{ t = Gemm(x, w, b)  y = Tanh(t) }}")
        model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
        same_as_ort(model, {"x": array(rows, 130)})


# Attention's products: the transposes around them are read through, not performed.

ATTENTION = {
    "scores, K transposed": (
        """(float[2,3,7,17] q, float[2,3,33,17] k) => (y) {
            t = Transpose <perm = [0,1,3,2]> (k)  y = MatMul(q, t) }""",
        1,
    ),
    "heads split on both": (
        """(float[2,7,3,17] q, float[2,33,3,17] k) => (y) {
            a = Transpose <perm = [0,2,1,3]> (q)  b = Transpose <perm = [0,2,3,1]> (k)  y = MatMul(a, b) }""",
        1,
    ),
    "heads joined": (
        """(float[2,3,7,33] p, float[2,33,3,17] v) => (y) {
            a = Transpose <perm = [0,2,1,3]> (v)  b = MatMul(p, a)  y = Transpose <perm = [0,2,1,3]> (b) }""",
        1,
    ),
    "result read twice": (
        """(float[2,3,7,5] p, float[2,3,5,9] v) => (y, z) {
            b = MatMul(p, v)  y = Transpose <perm = [0,2,1,3]> (b)  z = Relu(b) }""",
        None,
    ),
    "result transposed twice, differently": (
        """(float[2,3,7,5] p, float[2,3,5,9] v) => (y, z) {
            b = MatMul(p, v)  y = Transpose <perm = [0,2,1,3]> (b)  z = Transpose <perm = [3,1,2,0]> (b) }""",
        None,
    ),
    "result is an output, too": (
        "(float[3,7,5] p, float[3,5,9] v) => (b, y) { b = MatMul(p, v) y = Transpose <perm = [0,2,1]> (b) }",
        None,
    ),
    "everything reversed": (
        """(float[5,7,3] p, float[9,5,3] v) => (y) {
            a = Transpose(p)  b = Transpose(v)  c = MatMul(a, b)  y = Transpose(c) }""",
        None,
    ),
    "batch axis in the inside": (
        """(float[7,2,17] p, float[17,33,2] v) => (y) {
            a = Transpose <perm = [1,0,2]> (p)  b = Transpose <perm = [2,0,1]> (v)  y = MatMul(a, b) }""",
        None,
    ),
    "transposed operand of lower rank": (
        "(float[2,3,7,17] q, float[33,17] k) => (y) { t = Transpose(k) y = MatMul(q, t) }",
        None,
    ),
    "transposed operand broadcast": (
        """(float[2,3,7,17] q, float[1,3,33,17] k) => (y) {
            t = Transpose <perm = [0,1,3,2]> (k)  y = MatMul(q, t) }""",
        1,
    ),
    "the same value on both sides": (
        "(float[2,7,17] q) => (y) { t = Transpose <perm = [0,2,1]> (q) y = MatMul(q, t) }",
        1,
    ),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_matmul_reads_through_transposes(case, text_graph, same_as_ort):
    text, steps = ATTENTION[case]
    model = text_graph(text)
    feeds = {v.name: array(*(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in model.graph.input}
    run = same_as_ort(model, feeds)
    if steps is not None:
        assert len(run.plan.steps) == steps


# Gemm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "constants", [("b", "c"), ("b",), ()], ids=["B and C constant", "B constant", "dynamic"]
)
@pytest.mark.parametrize("c", [None, (7, 33), (33,), (1, 33), (7, 1), (1,), ()], ids=str)
@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_gemm(trans, c, constants, single_op, same_as_ort):
    a = array(17, 7) if trans[0] else array(7, 17)
    b = array(33, 17) if trans[1] else array(17, 33)
    feeds = {"a": a, "b": b, "c": None if c is None else array(*c)}
    model = single_op("Gemm", feeds, constants=constants, transA=trans[0], transB=trans[1])
    same_as_ort(model, {k: v for k, v in feeds.items() if v is not None and k not in constants})


@pytest.mark.parametrize("factors", [(0.5, 1.0), (1.0, 2.5), (-1.5, 0.25), (2.0, 0.0), (0.0, 1.0)], ids=str)
@pytest.mark.parametrize("constants", [("b", "c"), ()], ids=["constant", "dynamic"])
def test_gemm_factors(factors, constants, single_op, same_as_ort):
    feeds = {"a": array(7, 17), "b": array(17, 33), "c": array(33)}
    model = single_op("Gemm", feeds, constants=constants, alpha=factors[0], beta=factors[1])
    same_as_ort(model, {k: v for k, v in feeds.items() if k not in constants})


def test_gemm_of_doubles(single_op, same_as_ort):
    feeds = {
        name: array(*shape).astype(np.float64)
        for name, shape in {"a": (7, 5), "b": (5, 3), "c": (3,)}.items()
    }
    same_as_ort(single_op("Gemm", feeds, constants=("b", "c"), alpha=0.5), {"a": feeds["a"]}, relative=1e-12)


def test_weights_that_are_shared(text_graph, same_as_ort):
    """One initializer, three layers, one of them reading it transposed."""
    model = text_graph(
        "(float[7,17] x) => (y, z) { a = MatMul(x, w)  y = Gemm <transB = 1> (a, w)  z = MatMul(x, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(array(17, 17), "w"))
    same_as_ort(model, {"x": array(7, 17)})


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_specials_spread_as_in_the_reference(special, single_op, same_as_ort):
    """A zero weight does not swallow what it multiplies: 0 * Inf is NaN."""
    a, b = array(7, 17), array(17, 33)
    a[2, 3], b[3, ::2] = special, 0
    same_as_ort(single_op("MatMul", {"a": a, "b": b}, constants=("b",)), {"a": a})


# Convolutions ------------------------------------------------------------------------------------------

CONVS = {
    "1x1": ((1, 17, 7, 7), (33, 17, 1, 1), {}),
    "1x1, one pixel": ((1, 17, 1, 1), (33, 17, 1, 1), {}),
    "1x1, strides": ((2, 7, 9, 8), (5, 7, 1, 1), {"strides": [2, 3]}),
    "3x3": ((1, 7, 17, 17), (17, 7, 3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3, strides": ((1, 7, 17, 15), (33, 7, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "7x7 stem": ((1, 3, 33, 33), (17, 3, 7, 7), {"pads": [3, 3, 3, 3], "strides": [2, 2]}),
    "asymmetric pads": ((1, 3, 7, 7), (4, 3, 3, 3), {"pads": [0, 2, 1, 0]}),
    "pads beyond the kernel": ((1, 3, 5, 5), (4, 3, 3, 3), {"pads": [4, 5, 4, 5]}),
    "dilations": ((1, 3, 17, 17), (4, 3, 3, 3), {"dilations": [2, 4], "pads": [2, 4, 2, 4]}),
    "wide kernel": ((1, 3, 5, 33), (4, 3, 1, 17), {}),
    "kernel is the image": ((2, 3, 7, 5), (33, 3, 7, 5), {}),
    "one channel in": ((1, 1, 17, 17), (7, 1, 5, 5), {}),
    "one channel out": ((1, 17, 7, 7), (1, 17, 3, 3), {}),
    "grouped": ((1, 34, 7, 7), (6, 17, 3, 3), {"group": 2}),
    "grouped, one in": ((1, 3, 7, 7), (12, 1, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise 33": ((1, 33, 9, 7), (33, 1, 3, 3), {"group": 33, "pads": [1, 1, 1, 1]}),
    "depthwise, strides": ((2, 17, 9, 7), (17, 1, 5, 3), {"group": 17, "strides": [2, 2]}),
    "depthwise, dilations": ((1, 16, 9, 9), (16, 1, 3, 3), {"group": 16, "dilations": [2, 2]}),
    "same upper": ((1, 3, 8, 8), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((1, 3, 8, 8), (4, 3, 4, 4), {"auto_pad": "SAME_LOWER"}),
    "signal": ((2, 7, 33), (17, 7, 5), {"pads": [2, 2]}),
    "signal, one step": ((1, 7, 1), (17, 7, 1), {}),
    "signal, causal dilated": ((1, 7, 33), (8, 7, 3), {"pads": [8, 0], "dilations": [4]}),
    "signal, depthwise": ((1, 17, 33), (17, 1, 5), {"group": 17}),
    "volume": ((1, 3, 5, 6, 7), (4, 3, 3, 2, 3), {"pads": [1, 0, 1, 1, 1, 0]}),
}


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("case", CONVS)
def test_conv(case, bias, single_op, same_as_ort):
    x, w, attributes = CONVS[case]
    feeds = {"x": array(*x), "w": array(*w), "b": array(w[0]) if bias else None}
    same_as_ort(single_op("Conv", feeds, constants=("w", "b"), **attributes), {"x": feeds["x"]})


@pytest.mark.parametrize("case", ["3x3, strides", "grouped", "signal", "same lower"])
def test_conv_with_weights_from_outside(case, single_op, same_as_ort):
    x, w, attributes = CONVS[case]
    feeds = {"x": array(*x), "w": array(*w), "b": array(w[0])}
    same_as_ort(single_op("Conv", feeds, **attributes), feeds)


def test_conv_with_bias_from_outside(single_op, same_as_ort):
    feeds = {"x": array(1, 3, 7, 7), "w": array(17, 3, 3, 3), "b": array(17)}
    same_as_ort(single_op("Conv", feeds, constants=("w",)), {"x": feeds["x"], "b": feeds["b"]})


TRANSPOSED = {
    "plain": ((1, 7, 5, 6), (7, 17, 3, 3), {}),
    "one pixel": ((1, 7, 1, 1), (7, 17, 4, 4), {}),
    "strides": ((2, 7, 5, 6), (7, 5, 3, 2), {"strides": [2, 3]}),
    "strides beyond the kernel": ((1, 3, 5, 6), (3, 4, 2, 2), {"strides": [3, 4]}),
    "as large as the stride": ((2, 7, 5, 6), (7, 5, 2, 3), {"strides": [2, 3]}),
    "as large as the stride, pads": ((1, 7, 5, 6), (7, 5, 2, 2), {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    "pads": ((1, 7, 5, 6), (7, 5, 4, 4), {"strides": [2, 2], "pads": [1, 2, 2, 0]}),
    "pads beyond the kernel": ((1, 3, 9, 9), (3, 4, 2, 2), {"pads": [3, 2, 1, 3]}),
    "dilations": ((1, 7, 5, 6), (7, 5, 3, 2), {"strides": [2, 1], "dilations": [2, 3]}),
    "output_padding": ((1, 7, 5, 6), (7, 5, 3, 3), {"strides": [2, 3], "output_padding": [1, 2]}),
    "output_padding, pads": (
        (1, 7, 5, 6),
        (7, 5, 3, 3),
        {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
    ),
    "output_shape": ((1, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
    "output_shape, cropped": ((1, 3, 5, 6), (3, 4, 4, 4), {"strides": [2, 2], "output_shape": [9, 11]}),
    "output_shape, same upper": (
        (1, 3, 5, 6),
        (3, 4, 4, 4),
        {"strides": [2, 2], "output_shape": [9, 11], "auto_pad": "SAME_UPPER"},
    ),
    "same upper": ((1, 3, 5, 6), (3, 4, 3, 4), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 3, 5, 6), (3, 4, 3, 4), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "grouped": ((1, 6, 5, 6), (6, 4, 3, 3), {"group": 2, "strides": [2, 2]}),
    "grouped, as large as the stride": ((1, 6, 5, 6), (6, 4, 2, 2), {"group": 2, "strides": [2, 2]}),
    "depthwise": ((1, 17, 5, 6), (17, 1, 4, 4), {"group": 17, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "signal": ((2, 7, 17), (7, 5, 4), {"strides": [3], "pads": [1, 2], "output_padding": [1]}),
    "signal, as large as the stride": ((2, 7, 17), (7, 5, 3), {"strides": [3]}),
    "signal, dilated": ((1, 7, 9), (7, 5, 3), {"strides": [2], "dilations": [3]}),
    "volume": ((1, 3, 3, 4, 5), (3, 4, 2, 3, 2), {"strides": [2, 2, 2]}),
}


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose(case, bias, single_op, same_as_ort):
    x, w, attributes = TRANSPOSED[case]
    channels = w[1] * attributes.get("group", 1)
    feeds = {"x": array(*x), "w": array(*w), "b": array(channels) if bias else None}
    same_as_ort(single_op("ConvTranspose", feeds, constants=("w", "b"), **attributes), {"x": feeds["x"]})


@pytest.mark.parametrize("case", ["plain", "strides", "grouped", "signal"])
def test_conv_transpose_with_weights_from_outside(case, single_op, same_as_ort):
    x, w, attributes = TRANSPOSED[case]
    feeds = {"x": array(*x), "w": array(*w)}
    same_as_ort(single_op("ConvTranspose", feeds, **attributes), feeds)


# What is fused onto a layer ----------------------------------------------------------------------------

EPILOGUES = {
    "bias, relu": "b = Add(m, bias)  y = Relu(b)",
    "residual": "y = Add(m, x)",
    "residual, twice": "b = Add(m, x)  c = Relu(b)  y = Add(c, m)",
    "gate": "s = Sigmoid(m)  y = Mul(m, s)",
    "GELU": "y = Gelu(m)",
    "scaled": "y = Mul(m, scalar)",
    "two results": "y = Relu(m)  z = Neg(m)",
    "summed": "y = ReduceSum(m, last)",
    "normalised": "b = Add(m, x)  y = LayerNormalization(b, bias, bias)",
    "cast": "y = Cast <to = 6> (m)",
    "transposed": "y = Transpose(m)",
    "cut": "y, z = Split <num_outputs = 2> (m)",
}


@pytest.mark.parametrize("rows", [1, 7, 34])
@pytest.mark.parametrize("case", EPILOGUES)
def test_what_follows_a_matmul(case, rows, text_graph, same_as_ort):
    if case == "cut" and rows % 2:
        pytest.skip("an odd number of rows has no halves")
    body, outputs = EPILOGUES[case], "y, z" if " z " in EPILOGUES[case] else "y"
    constants = {
        "w": array(33, 33),
        "bias": array(33),
        "scalar": np.float32(0.5),
        "last": np.array([-1]),
    }
    model = text_graph(f"(float[{rows},33] x) => ({outputs}) {{ m = MatMul(x, w) {body} }}")
    for name, value in constants.items():
        if name in body or name == "w":
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    same_as_ort(model, {"x": array(rows, 33)}, relative=1e-5)
