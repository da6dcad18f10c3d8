"""Normalisation and padding go into the neighbouring layer where that is exact, and stay elsewhere."""

import numpy as np
import pytest
from onnx import numpy_helper


def fill(model, **shapes):
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = generator.standard_normal(shape).astype(np.float32)
        if name == "var":
            array = np.abs(array) + 0.1
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


NORM = {"g": 4, "b": 4, "m": 4, "var": 4}


@pytest.mark.parametrize(
    ("layer", "shape", "weights"),
    [
        ("Conv<pads=[1, 1, 1, 1]>(x, w)", "1, 3, 8, 8", {"w": (4, 3, 3, 3)}),
        ("Conv<group=2>(x, w, c)", "1, 4, 8, 8", {"w": (4, 2, 3, 3), "c": 4}),
        ("ConvTranspose<strides=[2, 2]>(x, w, c)", "1, 3, 5, 5", {"w": (3, 4, 3, 3), "c": 4}),
        ("ConvTranspose<group=2>(x, w)", "1, 6, 5, 5", {"w": (6, 2, 3, 3)}),
        ("Gemm(x, w)", "5, 3", {"w": (3, 4)}),
        ("Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, c)", "5, 3", {"w": (4, 3), "c": 4}),
        ("Gemm<beta=3.0>(x, w, c)", "5, 3", {"w": (3, 4), "c": 1}),
    ],
)
def test_batch_normalisation_goes_into_the_layer(same, text_model, ops, layer, shape, weights):
    rank = shape.count(",") + 1
    out = ", ".join("ABCD"[:rank])
    body = f"""(float[{shape}] x) => (float[{out}] y) {{
        h = {layer} n = BatchNormalization<epsilon=0.01>(h, g, b, m, var) y = Relu(n) }}"""
    result = same(fill(text_model(body), **weights, **NORM))
    assert ops(result) == [layer.split("(")[0].split("<")[0], "Relu"]


@pytest.mark.parametrize(
    "rest",
    [
        "y = BatchNormalization(h, g, b, m, var) z = Neg(h)",  # the layer has another reader
        "y = BatchNormalization(h, g, b, m, var) z = BatchNormalization(x2, g, b, m, var)",  # no layer
    ],
)
def test_batch_normalisation_stays(same, text_model, ops, rest):
    body = f"""(float[1, 3, 8, 8] x, float[1, 4, 6, 6] x2) => (float[1, 4, 6, 6] y, float[1, 4, 6, 6] z) {{
        h = Conv(x, w) {rest} }}"""
    result = same(fill(text_model(body), w=(4, 3, 3, 3), **NORM))
    assert "BatchNormalization" in ops(result)


def test_batch_normalisation_of_a_layer_that_is_an_output_stays(same, text_model, ops):
    body = """(float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] h, float[1, 4, 6, 6] y) {
        h = Conv(x, w) y = BatchNormalization(h, g, b, m, var) }"""
    assert ops(same(fill(text_model(body), w=(4, 3, 3, 3), **NORM))) == ["Conv", "BatchNormalization"]


def test_training_mode_is_refused(refusal, text_model):
    body = """(float[2, 4, 6] x) => (float[2, 4, 6] y, float[4] a, float[4] c) {
        y, a, c = BatchNormalization<training_mode=1>(x, g, b, m, var) }"""
    assert "training mode; export the model in inference mode" in refusal(fill(text_model(body), **NORM))


@pytest.mark.parametrize(
    ("pads", "more", "left"),
    [
        ([0, 0, 1, 2, 0, 0, 3, 0], {}, ["Conv"]),
        ([0, 0, 1, 2, 0, 0, 3, 0], {"fill": 0.0}, ["Conv"]),
        ([1, 2, 3, 0], {"fill": 0.0, "axes": [2, 3]}, ["Conv"]),
        ([0, 0, 1, 2, 0, 0, 3, 0], {"fill": 1.0}, ["Pad", "Conv"]),
        ([0, 1, 0, 0, 0, 0, 0, 0], {}, ["Pad", "Conv"]),
        ([0, 0, -1, 0, 0, 0, 1, 0], {}, ["Pad", "Conv"]),
    ],
)
def test_zero_padding_goes_into_the_convolution(same, text_model, ops, pads, more, left):
    arguments = "x, p" + (", f" if "fill" in more else "") + (", a" if "axes" in more else "")
    channels = 4 if pads[1] == 1 and len(pads) == 8 else 3
    model = text_model(
        f"""(float[1, 3, 8, 8] x) => (float[A, B, C, D] y) {{
        q = Pad({arguments}) y = Conv<pads=[1, 0, 0, 1], strides=[2, 1]>(q, w) }}""",
        opset=18,
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(pads), "p"))
    if "fill" in more:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(more["fill"]), "f"))
    if "axes" in more:
        model.graph.initializer.append(numpy_helper.from_array(np.array(more["axes"]), "a"))
    assert ops(same(fill(model, w=(4, channels, 3, 3)))) == left


def test_padding_by_reflection_stays(same, text_model, ops):
    model = text_model(
        """(float[1, 3, 8, 8] x) => (float[A, B, C, D] y) { q = Pad<mode="reflect">(x, p) y = Conv(q, w) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "p"))
    assert ops(same(fill(model, w=(4, 3, 3, 3)))) == ["Pad", "Conv"]


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("size", "stride", "dilation"), [(7, 1, 1), (8, 2, 1), (9, 3, 1)])
def test_auto_pad_becomes_numbers(same, text_model, mode, size, stride, dilation):
    body = f"""(float[1, 3, {size}, {size}] x) => (float[A, B, C, D] y) {{
        y = Conv<auto_pad="{mode}", strides=[{stride}, {stride}],
            dilations=[{dilation}, {dilation}]>(x, w) }}"""
    result = same(fill(text_model(body), w=(4, 3, 3, 2)))
    assert "auto_pad" not in result.graph[0].attributes
