"""ONNX Runtime's own operators become standard ones with the same numbers."""

import numpy as np
import pytest
from onnx import numpy_helper

MS = '"com.microsoft" : 1'


def with_weights(model, **shapes):
    generator = np.random.default_rng(1)
    for name, shape in shapes.items():
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize(
    ("call", "weights", "left"),
    [
        ("Gelu(x)", {}, ["Gelu"]),
        ("BiasGelu(x, b)", {"b": 4}, ["Add", "Gelu"]),
        ("FastGelu(x)", {}, ["Gelu"]),
        ("FastGelu(x, b)", {"b": 4}, ["Add", "Gelu"]),
        ("QuickGelu(x)", {}, ["Mul", "Sigmoid", "Mul"]),
        ("QuickGelu<alpha=1.0>(x)", {}, ["Mul", "Sigmoid", "Mul"]),
        ("SkipLayerNormalization(x, x, g, b)", {"g": 4, "b": 4}, ["Add", "LayerNormalization"]),
        ("SkipLayerNormalization<epsilon=0.1>(x, x, g)", {"g": 4}, ["Add", "LayerNormalization"]),
        (
            "SkipLayerNormalization(x, x, g, b, c)",
            {"g": 4, "b": 4, "c": 4},
            ["Add", "Add", "LayerNormalization"],
        ),
        ("FusedMatMul(x, w)", {"w": (4, 4)}, ["MatMul"]),
        ("FusedMatMul<transB=1, alpha=0.5>(x, w)", {"w": (4, 4)}, ["MatMul", "Mul"]),
        ("FusedMatMul<transA=1>(x, z)", {"z": (2, 3, 5)}, ["Transpose", "MatMul"]),
    ],
)
def test_replaced(same, text_model, ops, call, weights, left):
    out = "float[A, B, C]"
    model = text_model(f"(float[2, 3, 4] x) => ({out} y) {{ y = com.microsoft.{call} }}", domains=MS)
    log = []
    assert ops(same(with_weights(model, **weights), log=log)) == left
    name = call.split("(")[0].split("<")[0]
    assert log == [f"com.microsoft {name} was replaced by standard operators"]


def test_the_sum_of_a_skip_layer_normalisation_is_an_output(same, text_model):
    body = """(float[2, 3, 4] x, float[2, 3, 4] z) => (float[2, 3, 4] y, float[2, 3, 4] s) {
        y, m, d, s = com.microsoft.SkipLayerNormalization(x, z, g) }"""
    model = with_weights(text_model(body, domains=MS), g=4)
    model.graph.node[0].output[1] = model.graph.node[0].output[2] = ""
    same(model)


@pytest.mark.parametrize(
    "attributes",
    [
        'activation="Relu"',
        'activation="Tanh", pads=[1, 1, 1, 1]',
        'activation="LeakyRelu", activation_params=[0.2]',
        'activation="Clip", activation_params=[-0.3, 0.4]',
        'activation="HardSigmoid", activation_params=[0.3, 0.4], strides=[2, 2]',
    ],
)
def test_fused_convolution(same, text_model, ops, attributes):
    call = f"com.microsoft.FusedConv<{attributes}>(x, w, b)"
    body = f"(float[1, 3, 6, 6] x) => (float[A, B, C, D] y) {{ y = {call} }}"
    left = ops(same(with_weights(text_model(body, domains=MS), w=(4, 3, 3, 3), b=4)))
    assert left[0] == "Conv" and len(left) == 2


def test_fused_convolution_with_a_sum(same, text_model, ops):
    body = """(float[1, 3, 6, 6] x, float[1, 4, 4, 4] z) => (float[A, B, C, D] y) {
        y = com.microsoft.FusedConv<activation="Relu">(x, w, b, z) }"""
    left = ops(same(with_weights(text_model(body, domains=MS), w=(4, 3, 3, 3), b=4)))
    assert left == ["Conv", "Add", "Relu"]


@pytest.mark.parametrize("activation", ['activation="Relu"', 'activation="LeakyRelu", activation_alpha=0.3'])
def test_fused_gemm(same, text_model, ops, activation):
    call = f"com.microsoft.FusedGemm<{activation}, transB=1>(x, w, b)"
    body = f"(float[2, 3] x) => (float[2, 4] y) {{ y = {call} }}"
    left = ops(same(with_weights(text_model(body, domains=MS), w=(4, 3), b=4)))
    assert left[0] == "Gemm" and len(left) == 2


@pytest.mark.parametrize(
    ("call", "op"),
    [
        ("FusedMatMul<transBatchA=1>(x, x)", "FusedMatMul"),
        ('FusedConv<activation="Nonsense">(x, x)', "FusedConv"),
        ('FusedGemm<activation="Selu">(x, x)', "FusedGemm"),
    ],
)
def test_unknown_forms_are_refused(refusal, text_model, call, op):
    body = f"(float[3, 3, 3, 3] x) => (float[A, B, C, D] y) {{ y = com.microsoft.{call} }}"
    text = refusal(text_model(body, domains=MS))
    assert f"{op} '{op}_0' (com.microsoft opset 1; FLOAT, FLOAT): this form of it has no conversion" in text


def test_statistics_of_a_skip_layer_normalisation_are_refused(refusal, text_model):
    body = """(float[2, 3, 4] x) => (float[2, 3, 4] y, float[2, 3, 1] m) {
        y, m = com.microsoft.SkipLayerNormalization(x, x, g) }"""
    text = refusal(with_weights(text_model(body, domains=MS), g=4))
    assert "SkipLayerNormalization 'SkipLayerNormalization_0' (com.microsoft" in text
