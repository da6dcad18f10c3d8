"""Channels-last layout: the rewritten model means exactly what it meant, and no transpose is wasted."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.errors import CompileError

RNG = np.random.default_rng(3)


def array(*shape):
    """Small integers: every order of summation gives the same floats, so results can be compared exactly."""
    return RNG.integers(-8, 9, shape).astype(np.float32)


def model(body: str, **constants) -> onnx.ModelProto:
    """ONNX's text form, with ``constants`` as initializers."""
    text = f'<ir_version: 10, opset_import: ["" : 20, "ai.sparsec" : 1]> g {body}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()
    )
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)


def ort(proto: onnx.ModelProto, feeds: dict) -> dict:
    """Without optimisations, which would reorder sums and hide a wrong body."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def same(proto: onnx.ModelProto, *, exact: bool = True) -> ir.Model:
    """Rewrite ``proto``, compare in ONNX Runtime, check with onnx, and return what came out."""
    rewritten = ir.from_proto(proto)
    channels_last(rewritten)
    after = ir.to_proto(rewritten)
    onnx.checker.check_model(after, full_check=True)
    for side in ("input", "output"):
        assert [v.name for v in getattr(after.graph, side)] == [v.name for v in getattr(proto.graph, side)]
    feeds = {v.name: array(*(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in proto.graph.input}
    want, got = ort(proto, feeds), ort(after, feeds)
    assert list(got) == list(want)
    for name, expected in want.items():
        assert got[name].dtype == expected.dtype
        if exact:
            np.testing.assert_array_equal(got[name], expected, err_msg=name)
        else:
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-6 * scale, err_msg=name)
    for value in (v for node in rewritten.graph for v in node.outputs):
        assert value.shape is not None and value.shape.is_static() and value.dtype is not None
    return rewritten


def count(rewritten: ir.Model, *ops: str) -> int:
    return sum(node.op_type in ops for node in rewritten.graph)


# Convolutions ------------------------------------------------------------------------------------------

CONVS = {
    "plain": ((1, 3, 9, 7), (4, 3, 3, 3), ""),
    "pads": ((2, 3, 9, 7), (4, 3, 3, 3), "pads = [1, 0, 2, 1]"),
    "strides": ((1, 3, 9, 7), (4, 3, 3, 2), "strides = [2, 3], pads = [1, 1, 1, 1]"),
    "dilations": ((1, 3, 11, 9), (4, 3, 3, 2), "dilations = [2, 3]"),
    "grouped": ((1, 6, 5, 5), (4, 3, 3, 3), "group = 2, pads = [1, 1, 1, 1]"),
    "depthwise": ((1, 5, 6, 6), (5, 1, 3, 3), "group = 5"),
    "depthwise, two each": ((1, 5, 6, 6), (10, 1, 3, 3), "group = 5"),
    "pointwise": ((2, 7, 4, 4), (3, 7, 1, 1), ""),
    "one pixel": ((1, 7, 1, 1), (3, 7, 1, 1), ""),
    "one channel": ((1, 1, 6, 6), (1, 1, 2, 2), ""),
    "same upper": ((1, 3, 8, 7), (4, 3, 3, 2), 'auto_pad = "SAME_UPPER"'),
    "same lower": ((1, 3, 8, 7), (4, 3, 4, 2), 'auto_pad = "SAME_LOWER"'),
    "same upper, strides": ((1, 3, 8, 7), (4, 3, 3, 2), 'auto_pad = "SAME_UPPER", strides = [3, 2]'),
    "same lower, strides": ((1, 3, 8, 7), (4, 3, 4, 5), 'auto_pad = "SAME_LOWER", strides = [2, 2]'),
    "same upper, strides beyond the kernel": (
        (1, 3, 8, 7),
        (4, 3, 1, 2),
        'auto_pad = "SAME_UPPER", strides = [3, 3]',
    ),
    "valid": ((1, 3, 8, 7), (4, 3, 3, 2), 'auto_pad = "VALID"'),
    "not set": ((1, 3, 8, 7), (4, 3, 3, 2), 'auto_pad = "NOTSET", pads = [1, 1, 0, 0]'),
    "signal": ((2, 3, 17), (4, 3, 5), "pads = [2, 1], strides = [2]"),
    "signal, same": ((2, 3, 17), (4, 3, 4), 'auto_pad = "SAME_LOWER", strides = [3]'),
    "signal, depthwise dilated": ((2, 4, 17), (4, 1, 3), "group = 4, dilations = [3]"),
    "volume": ((1, 2, 5, 5, 5), (3, 2, 2, 2, 2), ""),
}


def dims(shape):
    return ",".join(map(str, shape))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CONVS)
def test_conv(case, bias):
    x, w, attributes = CONVS[case]
    constants = {"w": array(*w)} | ({"b": array(w[0])} if bias else {})
    attributes = f"<{attributes}>" if attributes else ""
    out = same(
        model(f"(float[{dims(x)}] x) => (y) {{ y = Conv {attributes} (x, w{', b' * bias}) }}", **constants)
    )
    assert count(out, "ConvNHWC", "ConvNWC") == (len(x) < 5)


TRANSPOSED = {
    "plain": ((1, 3, 4, 5), (3, 2, 3, 3), ""),
    "strides": ((2, 3, 4, 5), (3, 2, 3, 2), "strides = [2, 3]"),
    "pads": ((1, 3, 4, 5), (3, 2, 3, 3), "strides = [2, 2], pads = [1, 0, 2, 1]"),
    "dilations": ((1, 3, 4, 5), (3, 2, 3, 2), "dilations = [2, 3]"),
    "output_padding": ((1, 3, 4, 5), (3, 2, 3, 3), "strides = [2, 3], output_padding = [1, 2]"),
    "output_shape": ((1, 3, 4, 5), (3, 2, 3, 3), "strides = [2, 2], output_shape = [8, 9]"),
    "output_shape, odd": ((1, 3, 4, 5), (3, 2, 4, 4), "strides = [2, 2], output_shape = [7, 9]"),
    "output_shape, same upper": (
        (1, 3, 4, 5),
        (3, 2, 4, 4),
        'strides = [2, 2], output_shape = [7, 9], auto_pad = "SAME_UPPER"',
    ),
    "same upper": ((1, 3, 4, 5), (3, 2, 3, 4), 'strides = [2, 2], auto_pad = "SAME_UPPER"'),
    "same lower": ((1, 3, 4, 5), (3, 2, 3, 4), 'strides = [2, 2], auto_pad = "SAME_LOWER"'),
    "same upper, strides beyond the kernel": (
        (1, 3, 4, 5),
        (3, 2, 2, 2),
        'strides = [3, 3], auto_pad = "SAME_UPPER"',
    ),
    "valid": ((1, 3, 4, 5), (3, 2, 3, 3), 'strides = [2, 2], auto_pad = "VALID"'),
    "grouped": ((1, 4, 4, 5), (4, 3, 3, 3), "group = 2, strides = [2, 2]"),
    "depthwise": ((1, 4, 4, 5), (4, 1, 2, 2), "group = 4, strides = [2, 2]"),
    "as large as the stride": ((1, 3, 4, 5), (3, 2, 2, 2), "strides = [2, 2]"),
    "signal": ((1, 3, 7), (3, 2, 4), "strides = [3], pads = [1, 2], output_padding = [1]"),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose(case):
    x, w, attributes = TRANSPOSED[case]
    attributes = f"<{attributes}>" if attributes else ""
    body = f"(float[{dims(x)}] x) => (y) {{ y = ConvTranspose {attributes} (x, w, b) }}"
    group = 2 if case == "grouped" else 4 if case == "depthwise" else 1
    out = same(model(body, w=array(*w), b=array(w[1] * group)))
    assert count(out, "ConvTransposeNHWC", "ConvTransposeNWC") == 1


def test_conv_with_weights_from_outside_stays():
    out = same(model("(float[1,2,5,5] x, float[3,2,3,3] w) => (y) { y = Conv(x, w) }"))
    assert [node.op_type for node in out.graph] == ["Conv"]


def test_unknown_auto_pad_is_refused():
    proto = model('(float[1,2,5,5] x) => (y) { y = Conv <auto_pad = "VALID"> (x, w) }', w=array(3, 2, 3, 3))
    proto.graph.node[0].attribute[0].s = b"SAME"
    proto.graph.node[0].name = "conv1"
    with pytest.raises(CompileError, match="Conv 'conv1': auto_pad must be a standard value, found 'SAME'"):
        channels_last(ir.from_proto(proto))


# Pools -------------------------------------------------------------------------------------------------

POOLS = {
    "plain": "kernel_shape = [2, 2]",
    "strides": "kernel_shape = [3, 2], strides = [2, 3]",
    "pads": "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 1, 2]",
    "ceil": "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1",
    "ceil, pads": "kernel_shape = [3, 2], strides = [3, 3], ceil_mode = 1, pads = [1, 1, 1, 0]",
    "dilations": "kernel_shape = [2, 3], dilations = [3, 2]",
    "same upper": 'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_UPPER"',
    "same lower": 'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_LOWER"',
    "same lower, no strides": 'kernel_shape = [4, 2], auto_pad = "SAME_LOWER"',
    "valid": 'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "VALID"',
}


@pytest.mark.parametrize("size", ["9,8", "7,11"])
@pytest.mark.parametrize("case", POOLS)
def test_max_pool(case, size):
    out = same(model(f"(float[2,3,{size}] x) => (y) {{ y = MaxPool <{POOLS[case]}> (x) }}"))
    assert count(out, "MaxPoolNHWC") == 1


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("case", POOLS)
def test_average_pool(case, include):
    body = f"AveragePool <{POOLS[case]}, count_include_pad = {include}> (x)"
    out = same(model(f"(float[2,3,9,8] x) => (y) {{ y = {body} }}"), exact=False)
    assert count(out, "AveragePoolNHWC") == 1


def test_pools_of_signals():
    out = same(
        model(
            """(float[2,3,17] x) => (y, z) {
                y = MaxPool <kernel_shape = [3], strides = [2], pads = [1, 0]> (x)
                z = AveragePool <kernel_shape = [4], strides = [2]> (x) }"""
        )
    )
    assert count(out, "MaxPoolNWC", "AveragePoolNWC") == 2


def test_max_pool_with_indices_stays():
    """The indices count in the original layout."""
    out = same(model("(float[1,2,6,6] x) => (y, i) { y, i = MaxPool <kernel_shape = [2, 2]> (x) }"))
    assert count(out, "MaxPool") == 1


@pytest.mark.parametrize("shape", ["2,3,5,7", "2,3,5", "1,1,1,1"])
def test_global_pools(shape):
    out = same(
        model(f"(float[{shape}] x) => (y, z) {{ y = GlobalAveragePool(x) z = GlobalMaxPool(x) }}"),
        exact=False,
    )
    assert count(out, "ReduceMean", "ReduceMax") == 2


def test_global_pool_of_volumes():
    same(model("(float[1,2,3,4,5] x) => (y) { y = GlobalAveragePool(x) }"), exact=False)


# What follows a convolution ----------------------------------------------------------------------------

AFTER = {
    "Relu": "y = Relu(c)",
    "Cast": "y = Cast <to = 7> (c)",
    "Clip": "y = Clip(c, lo, hi)",
    "Clip without a lower bound": "y = Clip(c, , hi)",
    "Add of a scalar": "y = Add(c, hi)",
    "Add on the left": "y = Sub(hi, c)",
    "per channel": "y = Mul(c, channel)",
    "per channel, batch axis": "y = Mul(channel4, c)",
    "per column": "y = Add(c, column)",
    "per row and column": "y = Add(c, plane)",
    "rank 1 of one": "y = Add(c, one)",
    "PRelu": "y = PRelu(c, channel)",
    "PRelu, one slope": "y = PRelu(c, one)",
    "Where": "m = Greater(c, hi) y = Where(m, c, channel)",
    "Max of three": "y = Max(c, channel, hi)",
    "Pow": "y = Pow(c, two)",
    "Softmax over channels": "e = Mul(c, tiny) y = Softmax <axis = 1> (e)",
    "Softmax over columns": "e = Mul(c, tiny) y = Softmax(e)",
    "LogSoftmax over rows": "e = Mul(c, tiny) y = LogSoftmax <axis = -2> (e)",
    "Hardmax over channels": "y = Hardmax <axis = -3> (c)",
    "Concat over channels": "d = Relu(c) y = Concat <axis = 1> (c, d, c)",
    "Concat over rows": "d = Relu(c) y = Concat <axis = -2> (c, d)",
    "Concat over the batch": "d = Relu(c) y = Concat <axis = 0> (c, d)",
    "Concat with a constant": "y = Concat <axis = 1> (c, whole)",
    "ReduceMean over pixels": "y = ReduceMean(c, axes23)",
    "ReduceMean over pixels, dropped": "y = ReduceMean <keepdims = 0> (c, axes23)",
    "ReduceSum over channels": "y = ReduceSum(c, axes1)",
    "ReduceSum over channels, dropped": "y = ReduceSum <keepdims = 0> (c, axes1)",
    "ReduceMax over rows, dropped": "y = ReduceMax <keepdims = 0> (c, axes2)",
    "ReduceSum over all": "y = ReduceSum <keepdims = 0> (c)",
    "ReduceSum, negative axes": "y = ReduceSum <keepdims = 0> (c, negative)",
    "ReduceSum of nothing": "y = ReduceSum <noop_with_empty_axes = 1> (c)",
    "ReduceSum of no axes": "y = ReduceSum <noop_with_empty_axes = 1> (c, none)",
    "ReduceSum of no axes means all": "y = ReduceSum(c, none)",
    "Pad": "y = Pad(c, pads)",
    "Pad with a value": "y = Pad(c, pads, hi)",
    "Pad, reflected": 'y = Pad <mode = "reflect"> (c, inner)',
    "Pad, edge": 'y = Pad <mode = "edge"> (c, pads)',
    "Pad of two axes": "y = Pad(c, pads2, hi, axes23)",
    "Resize by sizes": "y = Resize(c, , , sizes)",
    "Resize by scales": 'y = Resize <mode = "linear"> (c, , scales)',
    "Resize of two axes": "y = Resize <axes = [2, 3]> (c, , scales2)",
    "Flatten": "y = Flatten(c)",
    "Flatten later": "y = Flatten <axis = 2> (c)",
    "Reshape": "y = Reshape(c, flat)",
    "Transpose to last": "y = Transpose <perm = [0, 2, 3, 1]> (c)",
    "Transpose to last and back": "t = Transpose <perm = [0, 2, 3, 1]> (c)"
    " y = Transpose <perm = [0, 3, 1, 2]> (t)",
    "Transpose otherwise": "y = Transpose <perm = [3, 1, 0, 2]> (c)",
    "Transpose without perm": "y = Transpose(c)",
    "MatMul": "y = MatMul(c, square)",
    "Split": "y, z = Split <axis = 1> (c, halves)",
    "Squeeze": "p = ReduceMean(c, axes23) y = Squeeze(p, axes23)",
    "InstanceNormalization": "y = InstanceNormalization(c, gain, gain)",
    "BatchNormalization": "y = BatchNormalization(c, gain, gain, gain, square6)",
    "DepthToSpace": "k = Conv <pads = [1, 1, 1, 1]> (x, w8) y = DepthToSpace <blocksize = 2> (k)",
    "Slice": "y = Slice(c, lows, highs, axes23)",
    "TopK": "y, z = TopK <axis = 1> (c, two1)",
    "ArgMax": "y = ArgMax <axis = 1> (c)",
    "CumSum": "y = CumSum(c, one_axis)",
    "Expand": "y = Expand(c, more)",
    "Shape of it": "s = Shape(c) y = Cast <to = 1> (s)",
    "Dropout": "y = Dropout(c)",
    "Mean": "y = Mean(c, c)",
    "Identity": "y = Identity(c)",
    "unused": "u = Relu(c) y = Neg(x)",
}
CONSTANTS = {
    "w": array(6, 3, 3, 3),
    "w8": array(8, 3, 3, 3),
    "lo": np.float32(-20),
    "hi": np.float32(11),
    "two": np.float32(2),
    "tiny": np.float32(1 / 64),
    "one": array(1),
    "channel": array(6, 1, 1),
    "channel4": array(1, 6, 1, 1),
    "column": array(4),
    "plane": array(5, 4),
    "whole": array(2, 7, 5, 4),
    "gain": array(6) + 10,
    "square6": array(6) ** 2 + 1,
    "axes1": np.array([1]),
    "axes2": np.array([2]),
    "axes23": np.array([2, 3]),
    "negative": np.array([-1, 1]),
    "none": np.zeros(0, np.int64),
    "pads": np.array([0, 1, 2, 0, 1, 0, 1, 2]),
    "inner": np.array([0, 0, 2, 1, 0, 0, 1, 2]),
    "pads2": np.array([1, 0, 0, 2]),
    "sizes": np.array([2, 6, 10, 9]),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "scales2": np.array([2, 3], np.float32),
    "flat": np.array([2, -1]),
    "square": array(4, 3),
    "halves": np.array([2, 4]),
    "lows": np.array([1, 0]),
    "highs": np.array([4, 3]),
    "two1": np.array([2]),
    "one_axis": np.array(1),
    "more": np.array([3, 1, 1, 1, 1]),
}
ROUNDED = ("Softmax", "LogSoftmax", "Reduce", "Resize", "Normalization", "Squeeze")


@pytest.mark.parametrize("case", AFTER)
def test_after_a_convolution(case):
    """The shape of ``c`` is [2, 6, 5, 4], so that no two axes can be taken for each other."""
    body, outputs = AFTER[case], "y, z" if "z =" in AFTER[case] else "y"
    used = {name: value for name, value in CONSTANTS.items() if name in {"w", *re.findall(r"\w+", body)}}
    text = f"(float[2,3,5,4] x) => ({outputs}) {{ c = Conv <pads = [1, 1, 1, 1]> (x, w) {body} }}"
    same(model(text, **used), exact=not any(word in body for word in ROUNDED))


def test_squeeze_excite():
    """A rank-2 detour between channels-last values."""
    same(
        model(
            """(float[2,3,5,4] x) => (y) {
                c = Conv <pads = [1, 1, 1, 1]> (x, w)
                p = GlobalAveragePool(c)  f = Flatten(p)  s = Sigmoid(f)  e = Unsqueeze(s, axes23)
                y = Mul(c, e) }""",
            w=CONSTANTS["w"],
            axes23=CONSTANTS["axes23"],
        ),
        exact=False,
    )


@pytest.mark.parametrize("shape", ["[6,1,1]", "[1,6,1,1]", "[1]", "", "[2,6,5,4]", "[5,4]", "[4]"])
@pytest.mark.parametrize("op", ["Add", "PRelu", "Where"])
def test_second_operand_from_outside(op, shape):
    """Values that arrive at run time are broadcast and transposed, as constants are."""
    call = "Where(m, b, c)" if op == "Where" else f"{op}(c, b)"
    extra = "z = Identity(zero) m = Greater(c, z)" if op == "Where" else ""
    conv = "c = Conv <pads = [1,1,1,1]> (x, w)"
    text = f"(float[2,3,5,4] x, float{shape} b) => (y) {{ {conv} {extra} y = {call} }}"
    constants = {"zero": np.float32(0)} if op == "Where" else {}
    same(model(text, w=CONSTANTS["w"], **constants))


def test_second_operand_of_higher_rank():
    """Broadcasting an image against a rank-5 value leaves the order alone."""
    same(
        model(
            "(float[2,3,5,4] x, float[7,2,3,5,4] b) => (y) { c = Conv(x, w) y = Add(c, b) }",
            w=array(3, 3, 1, 1),
        )
    )


def test_signal_against_image():
    same(
        model("(float[3,2,4] x, float[2,3,5,4] b) => (y) { c = Conv(x, w) y = Add(c, b) }", w=array(5, 2, 1))
    )


def test_signal_network():
    out = same(
        model(
            """(float[2,3,17] x) => (y) {
                a = Conv <pads = [1, 1]> (x, w1)  b = Relu(a)
                c = MaxPool <kernel_shape = [2], strides = [2]> (b)
                d = Conv <pads = [1, 1]> (c, w2)  e = Add(d, c)  f = PRelu(e, slope)
                g = ConvTranspose <strides = [2]> (f, w3)  h = GlobalMaxPool(g)  y = Flatten(h) }""",
            w1=array(4, 3, 3),
            w2=array(4, 4, 3),
            w3=array(4, 5, 2),
            slope=array(4, 1),
        )
    )
    assert count(out, "Transpose") == 1


# Graph edges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "(float[1,3,5,4] x) => (c, y) { c = Conv(x, w) y = Relu(c) }",
        "(float[1,3,5,4] x) => (y, c) { c = Conv(x, w) y = Relu(c) }",
        "(float[1,3,5,4] x) => (c, d) { c = Conv(x, w) d = Conv(x, w) }",
        "(float[1,3,5,4] x) => (float[1,3,5,4] x, c) { c = Conv(x, w) }",
        "(float[1,3,5,4] x) => (c, t) { c = Conv(x, w) t = Transpose <perm = [0, 2, 3, 1]> (c) }",
        "(float[1,5,4,3] x) => (t, c) { t = Transpose <perm = [0, 3, 1, 2]> (x) c = Conv(t, w) }",
        "(float[1,5,4,3] x) => (y) { t = Transpose <perm = [0, 3, 1, 2]> (x)"
        " y = Transpose <perm = [0, 2, 3, 1]> (t) }",
        "(float[1,5,4,3] x) => (y, z) { t = Transpose <perm = [0, 3, 1, 2]> (x)"
        " y = Transpose <perm = [0, 2, 3, 1]> (t) z = Transpose <perm = [0, 2, 3, 1]> (t) }",
        "(float[1,3,5,4] x) => (y, z) { c = Conv(x, w) y = Transpose <perm = [0, 2, 3, 1]> (c)"
        " z = Transpose <perm = [0, 2, 3, 1]> (c) }",
        "(float[1,3,5,4] x) => (y) { t = Transpose <perm = [0, 2, 3, 1]> (x)"
        " y = Transpose <perm = [0, 3, 1, 2]> (t) }",
    ],
)
def test_outputs_in_the_middle(text):
    same(model(text, w=array(3, 3, 1, 1)))


def test_duplicate_outputs():
    proto = model("(float[1,3,5,4] x) => (c) { c = Conv(x, w) }", w=array(3, 3, 1, 1))
    rewritten = ir.from_proto(proto)
    rewritten.graph.outputs.append(rewritten.graph.outputs[0])
    channels_last(rewritten)
    first, second = rewritten.graph.outputs
    assert first is second and first.name == "c"


def test_network_of_nothing():
    same(model("(float[1,3,5,4] x) => (float[1,3,5,4] x) { }"))


def test_two_readers_share_one_transpose():
    out = same(
        model(
            "(float[1,3,5,4] x) => (a, b) { c = Conv(x, w)"
            " a = Flatten <axis = 2> (c) b = Flatten <axis = 3> (c) }",
            w=array(6, 3, 1, 1),
        )
    )
    assert count(out, "Transpose") == 2  # one in, one out


# No needless transposes --------------------------------------------------------------------------------


def residual(name: str, source: str, stride: int) -> str:
    shortcut = (
        f"{name}s = Conv <strides = [{stride}, {stride}]> ({source}, {name}p)"
        if stride > 1
        else f"{name}s = Identity({source})"
    )
    return f"""{name}a = Conv <pads = [1,1,1,1], strides = [{stride}, {stride}]> ({source}, {name}w)
        {name}b = Relu({name}a)  {name}c = Conv <pads = [1,1,1,1]> ({name}b, {name}v, bias)
        {shortcut}  {name}d = Add({name}c, {name}s)  {name} = Relu({name}d)"""


def test_resnet_like():
    """One transpose at the door; behind the global pool nothing moves."""
    weights = {f"{n}{k}": array(8, 8, 3, 3) for n in ("p", "q", "r") for k in "wv"}
    weights |= {"qp": array(8, 8, 1, 1), "stem": array(8, 3, 7, 7), "fc": array(8, 5), "bias": array(8)}
    weights = {name: value / np.float32(16) for name, value in weights.items()}
    out = same(
        model(
            f"""(float[1,3,33,33] x) => (y) {{
                s = Conv <strides = [2,2], pads = [3,3,3,3]> (x, stem, bias)  t = Relu(s)
                u = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]> (t)
                {residual("p", "u", 1)} {residual("q", "p", 2)} {residual("r", "q", 1)}
                g = GlobalAveragePool(r)  f = Flatten(g)  y = MatMul(f, fc) }}""",
            **weights,
        ),
        exact=False,
    )
    assert count(out, "Transpose") == 1
    assert count(out, "ConvNHWC") == 8


def test_tensorflow_style():
    """tf2onnx wraps each convolution in transposes; all of them go."""
    body = """(float[1,9,7,3] x) => (y) {
        a = Transpose <perm = [0, 3, 1, 2]> (x)  b = Conv <pads = [1,1,1,1]> (a, w)
        c = Transpose <perm = [0, 2, 3, 1]> (b)  d = Add(c, bias)  e = Relu(d)
        f = Transpose <perm = [0, 3, 1, 2]> (e)  g = MaxPool <kernel_shape = [2,2], strides = [2,2]> (f)
        h = Conv(g, v)  y = Transpose <perm = [0, 2, 3, 1]> (h) }"""
    out = same(model(body, w=array(8, 3, 3, 3), v=array(4, 8, 1, 1), bias=array(8)))
    assert count(out, "Transpose") == 0


def test_unet_like():
    """Concatenation over channels and upsampling stay in the layout: one transpose in, one out."""
    out = same(
        model(
            """(float[1,3,8,8] x) => (y) {
                a = Conv <pads = [1,1,1,1]> (x, w1)  b = Relu(a)
                c = MaxPool <kernel_shape = [2,2], strides = [2,2]> (b)  d = Conv <pads = [1,1,1,1]> (c, w2)
                e = ConvTranspose <strides = [2,2]> (d, w3)  f = Concat <axis = 1> (b, e)
                g = Conv(f, w4)  h = Resize <mode = "nearest"> (g, , scales)  y = Sigmoid(h) }""",
            w1=array(4, 3, 3, 3),
            w2=array(8, 4, 3, 3) / 16,
            w3=array(8, 4, 2, 2) / 16,
            w4=array(2, 8, 1, 1) / 16,
            scales=np.array([1, 1, 2, 2], np.float32),
        ),
        exact=False,
    )
    assert count(out, "Transpose") == 2


def test_one_channel_needs_no_transpose():
    """With one channel both orders are the same bytes."""
    out = same(model("(float[1,1,8,8] x) => (y) { c = Conv(x, w) y = Relu(c) }", w=array(1, 1, 3, 3)))
    assert count(out, "Transpose") == 0


def test_tokens_are_no_signal():
    """Turned patches stay [batch, tokens, channels] behind a vision transformer's door; a signal turns."""
    door = """(float[1,3,8,8] x) => (y) {
        a = Conv <strides = [4,4]> (x, w)  b = Reshape(a, shape)  c = Transpose <perm = [0, 2, 1]> (b)
        d = Add(c, positions)  """
    given = {
        "w": array(6, 3, 4, 4),
        "shape": np.array([1, 6, 4]),
        "positions": array(1, 4, 6),
        "square": array(6, 6),
        "v": array(5, 4, 3),
    }
    tokens = same(model(door + "e = MatMul(d, square)  y = Add(e, d) }", **given))
    assert [n.op_type for n in tokens.graph if n.op_type != "Reshape"][-3:] == ["Add", "MatMul", "Add"]
    signal = same(model(door + "y = Conv(d, v) }", **given))
    assert count(signal, "ConvNWC") == 1
