"""What TVM's importer gets wrong is rewritten with the same numbers, or refused."""

import numpy as np
import pytest
from onnx import numpy_helper


def add(model, **arrays):
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


@pytest.mark.parametrize("attributes", ["", "<detect_negative=0>", "<detect_positive=0>"])
def test_isinf_of_one_sign(same, text_model, ops, attributes):
    model = text_model(f"(float[6] x) => (bool[6] y) {{ y = IsInf{attributes}(x) }}", opset=20)
    feed = np.array([np.inf, -np.inf, 0, np.nan, 1, -1], np.float32)
    result = same(model, feeds={"x": feed})
    assert ops(result) == (
        ["IsInf", "Greater", "And"] if "negative" in attributes else ["IsInf", "Less", "And"]
    ) or (attributes == "" and ops(result) == ["IsInf"])


def test_isinf_of_no_sign_is_never_true(same, text_model, ops):
    body = "(float[2] x) => (bool[2] y) { y = IsInf<detect_negative=0, detect_positive=0>(x) }"
    assert ops(same(text_model(body, opset=20), feeds={"x": np.array([np.inf, -np.inf], np.float32)})) == [
        "Identity"
    ]


@pytest.mark.parametrize(
    "attributes",
    [
        "output_shape=[10, 8], strides=[3, 2]",
        'auto_pad="SAME_UPPER", strides=[2, 2]',
        'auto_pad="SAME_LOWER", strides=[2, 2]',
        'auto_pad="VALID", strides=[2, 2]',
        'auto_pad="NOTSET", strides=[2, 2], pads=[1, 1, 1, 1]',
        "strides=[2, 2], output_padding=[1, 1]",
    ],
)
def test_transposed_convolution(same, text_model, attributes):
    model = text_model(
        f"(float[1, 2, 3, 3] x) => (float[A, B, C, D] y) {{ y = ConvTranspose<{attributes}>(x, w) }}"
    )
    weight = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    node = same(add(model, w=weight)).graph[0]
    assert "auto_pad" not in node.attributes and "output_shape" not in node.attributes


def test_transposed_convolution_that_needs_too_much_padding(refusal, text_model):
    body = "(float[1, 1, 3, 3] x) => (float[A, B, C, D] y) { y = ConvTranspose<output_shape=[9, 9]>(x, w) }"
    text = refusal(add(text_model(body), w=np.ones((1, 1, 3, 3), np.float32)))
    assert "an output_shape that needs an output padding of a stride or more" in text


def test_eye_like_is_a_constant(same, text_model, ops):
    body = (
        "(int32[3, 4] x) => (float[3, 4] y) { e = EyeLike<dtype=1, k=1>(x) f = Cast<to=1>(x) y = Mul(e, f) }"
    )
    assert ops(same(text_model(body))) == ["Cast", "Mul"]


def test_the_mask_of_dropout_is_true(same, text_model, ops):
    body = "(float[3] x) => (float[3] y, bool[3] m) { a, m = Dropout(x) y = Relu(a) }"
    assert sorted(ops(same(text_model(body)))) == ["Identity", "Relu"]


@pytest.mark.parametrize("kind", ["int64", "float"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(same, text_model, ops, kind, axis):
    model = text_model(f"(int64[2, 3] i) => (float[A, B, C] y) {{ y = OneHot<axis={axis}>(i, d, v) }}")
    depth = np.array(5, np.int64 if kind == "int64" else np.float32)
    model = add(model, d=depth, v=np.array([-1, 2], np.float32))
    left = ops(same(model, feeds={"i": np.array([[0, 4, -1], [-5, 5, -6]])}))
    assert "OneHot" not in left


@pytest.mark.parametrize(
    ("kind", "exponent", "left"),
    [
        ("float", np.float32(2), ["Mul"]),
        ("float", np.int64(2), ["Mul"]),
        ("int64", np.int64(2), ["Mul"]),
        ("float", np.float32(3), ["Pow"]),
        ("float", np.int64(3), ["Pow"]),
    ],
)
def test_powers(same, text_model, ops, kind, exponent, left):
    assert (
        ops(same(add(text_model(f"({kind}[4] x) => ({kind}[4] y) {{ y = Pow(x, p) }}"), p=exponent))) == left
    )


def test_powers_of_mixed_types(same, text_model, ops):
    body = "(float[4] x, int64[4] p) => (float[4] y) { y = Pow(x, p) }"
    assert ops(same(text_model(body))) == ["Cast", "Pow"]


RESIZE = "(float[1, 2, 4, 6] x) => (float[A, B, C, D] y) { y = Resize<%s>(x, %s) }"


@pytest.mark.parametrize(
    ("attributes", "inputs", "arrays"),
    [
        ('mode="nearest"', "r, s", {"s": np.array([1, 1, 2, 2], np.float32)}),
        (
            'mode="linear", coordinate_transformation_mode="align_corners"',
            "r, s",
            {"s": np.array([1, 1, 2, 2], "f4")},
        ),
        ('mode="cubic"', "r, s", {"s": np.array([1, 1, 0.5, 0.5], np.float32)}),
        ('mode="linear", axes=[2, 3]', "r, s", {"s": np.array([3, 2], np.float32)}),
        ('mode="linear", axes=[3, 2]', "r, e, n", {"n": np.array([7, 5])}),
        ('mode="nearest", nearest_mode="floor"', "r, e, n", {"n": np.array([1, 2, 5, 9])}),
    ],
)
def test_resize_says_its_sizes(same, text_model, ops, attributes, inputs, arrays):
    arrays = {"r": np.zeros(0, np.float32), "e": np.zeros(0, np.float32), **arrays}
    model = add(text_model(RESIZE % (attributes, inputs), opset=18), **arrays)
    result = same(model)
    node = result.graph[0]
    assert ops(result) == ["Resize"] and "axes" not in node.attributes
    assert list(node.inputs[3].const_value.numpy()) == list(result.graph.outputs[0].shape)


@pytest.mark.parametrize(
    ("attributes", "scales", "text"),
    [
        ('mode="linear", antialias=1', [1, 1, 0.5, 0.5], "antialias"),
        (
            'mode="linear", coordinate_transformation_mode="tf_crop_and_resize"',
            [1, 1, 2, 2],
            "tf_crop_and_resize",
        ),
    ],
)
def test_resize_forms_that_are_refused(refusal, text_model, attributes, scales, text):
    model = add(
        text_model(RESIZE % (attributes, "r, s"), opset=18), r=np.zeros(0, "f4"), s=np.array(scales, "f4")
    )
    assert text in refusal(model)


def test_resize_that_keeps_the_aspect_ratio_is_refused(refusal, text_model):
    model = text_model(
        RESIZE % ('mode="linear", keep_aspect_ratio_policy="not_larger", axes=[2, 3]', "r, e, n"), opset=18
    )
    model = add(model, r=np.zeros(0, "f4"), e=np.zeros(0, "f4"), n=np.array([7, 5]))
    assert "keep_aspect_ratio_policy; give the sizes themselves" in refusal(model)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            "(float[1, 1, 4] x) => (float[1, 1, 3] y, int64 i) { y, i = MaxPool<kernel_shape=[2]>(x) }",
            "indices",
        ),
        (
            "(float[2, 4] x) => (float[2, 4] y, float[A, B] m) { y, m = LayerNormalization(x, w) }",
            "the mean and the dev",
        ),
        ("(int64[4] x, int64[4] p) => (int64[4] y) { y = Pow(x, p) }", "powers of integers other than 2"),
        ("(bool[2, 4] x) => (bool[A, B] y) { y = ReduceMax(x) }", "booleans; cast to int32 first"),
        ("(bool[2, 4] x) => (bool[A, B] y) { y = ReduceMin(x) }", "booleans; cast to int32 first"),
        (
            "(float[4] x) => (float[4] y) { y = Dropout(x, r, t) }",
            "training mode; export the model in inference mode",
        ),
        (
            """(float[1, 1, 6, 6] x, float[2, 4] r, int64[2] i) => (float[A, B, C, D] y) {
            y = RoiAlign<mode="max", output_height=2, output_width=2>(x, r, i) }""",
            "mode max",
        ),
    ],
)
def test_forms_that_are_refused(refusal, text_model, body, text):
    model = add(text_model(body, opset=20), w=np.ones(4, "f4"), r=np.float32(0.5), t=np.array(True))
    if "float[2, 4] r" in body:
        model.graph.initializer.pop(1)
    assert text in refusal(model)
