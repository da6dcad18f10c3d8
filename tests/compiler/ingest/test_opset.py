"""Every opset from 7 to 26 arrives in the same internal one with the same numbers."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


@pytest.mark.parametrize("opset", range(7, 27))
def test_a_small_network_of_every_opset(same, text_model, ops, opset):
    body = """(float[N, 3, 8, 8] x) => (float[N, 4, 3, 3] y) {
        a = Conv(x, w) b = Relu(a) y = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(b) }"""
    model = text_model(body, opset=opset)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    assert ops(same(model)) == ["Conv", "Relu", "MaxPool"]


OLD = [
    (7, "Softmax<axis=1>(x)", "float[2, 3, 4]"),  # flattens to two dims before opset 13
    (9, "LogSoftmax<axis=2>(x)", "float[2, 3, 4]"),
    (7, "Clip<min=-0.5, max=0.5>(x)", "float[2, 3, 4]"),
    (9, "Slice<axes=[1], starts=[1], ends=[3]>(x)", "float[2, 2, 4]"),
    (9, "Squeeze<axes=[0]>(u)", "float[2, 3, 4]"),
    (10, 'Pad<mode="constant", pads=[0, 1, 0, 0, 0, 2], value=1.5>(x)', "float[2, 4, 6]"),
    (11, "ReduceSum<axes=[1], keepdims=0>(x)", "float[2, 4]"),
    (17, "ReduceMean<axes=[1], keepdims=0>(x)", "float[2, 4]"),
    (7, "Dropout<ratio=0.5>(x)", "float[2, 3, 4]"),
    (7, "Identity(x)", "float[2, 3, 4]"),
]


@pytest.mark.parametrize(("opset", "call", "out"), OLD)
def test_attributes_that_became_inputs(same, text_model, opset, call, out):
    before = "u = Unsqueeze<axes=[0]>(x)" if "(u)" in call else ""
    same(text_model(f"(float[2, 3, 4] x) => ({out} y) {{ {before} y = {call} }}", opset=opset))


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_upsampling_of_old_opsets(same, text_model, ops, opset):
    scales = "" if opset == 7 else ", s"
    kind = "Upsample" if opset < 10 else "Resize"
    attribute = "<scales=[1.0, 1.0, 2.0, 3.0]>" if opset == 7 else '<mode="nearest">'
    model = text_model(
        f"(float[1, 2, 3, 4] x) => (float[1, 2, 6, 12] y) {{ y = {kind}{attribute}(x{scales}) }}", opset=opset
    )
    if scales:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 3], np.float32), "s"))
    assert ops(same(model)) == ["Resize"]


NEW = [
    (21, "GroupNormalization<num_groups=2>(x, s, b)", None),
    (23, "RMSNormalization<axis=-1>(x, t)", None),
    (24, "Swish<alpha=1.5>(x)", None),
    (22, "Elu(x)", ["Elu"]),
    (23, "Cast<to=11>(x)", ["Cast"]),
]


@pytest.mark.parametrize(("opset", "call", "left"), NEW)
def test_newer_operators_are_brought_down(same, text_model, ops, opset, call, left):
    kind = "double" if "11" in call else "float"
    model = text_model(f"(float[2, 4, 5] x) => ({kind}[2, 4, 5] y) {{ y = {call} }}", opset=opset)
    for name, size in (("s", 4), ("b", 4), ("t", 5)):
        if f", {name}" in call:
            model.graph.initializer.append(
                numpy_helper.from_array(np.linspace(1, 2, size, dtype=np.float32), name)
            )
    result = ops(same(model))
    assert result == left if left else call.split("<")[0] not in result


def test_attributes_that_opset_20_lacks(refusal, text_model):
    body = "(int8[4, 8] x, float[4, 2] s) => (float y) { y = DequantizeLinear<axis=1, block_size=4>(x, s) }"
    text = refusal(text_model(body, opset=21))
    assert "DequantizeLinear 'DequantizeLinear_0' sets block_size=4, which opset 20 does not have" in text


def test_operators_newer_than_everything_are_listed(refusal, text_model):
    text = refusal(text_model("(float[4] x, int64 a) => (float[4] y) { y = CumProd(x, a) }", opset=26))
    assert "CumProd 'CumProd_0'" in text and "sparsec has no conversion for it" in text


def test_a_failed_conversion_is_one_line(refusal, text_model, monkeypatch):
    body = "(float[2, 3] x) => (float[2, 3] y) { y = Nonsense(x) }"
    text = refusal(text_model(body, opset=9))
    assert "opset 9 of ONNX does not define what the model uses: Nonsense 'Nonsense_0'" in text

    def broken(proto, opset):
        raise RuntimeError("/x/convert.cc:101: f: Assertion `false` failed: No such adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", broken)
    text = refusal(text_model("(float[2] x) => (float[2] y) { y = Relu(x) }", opset=9))
    assert "the model of opset 9 cannot be converted to opset 20: No such adapter; export it again" in text


def test_celu_is_expanded(same, text_model, ops):
    log = []
    left = ops(same(text_model("(float[2, 3] x) => (float[2, 3] y) { y = Celu<alpha=2.0>(x) }"), log=log))
    assert "Celu" not in left and log == ["Celu was replaced by the standard operators that define it"]


def test_loss_and_attention_are_expanded(same, text_model, ops):
    body = (
        """(float[2, 5] x, int64[2] t) => (float l, float[2, 5] p) { l, p = SoftmaxCrossEntropyLoss(x, t) }"""
    )
    assert "SoftmaxCrossEntropyLoss" not in ops(same(text_model(body)))
    body = """(float[1, 2, 3, 4] q, float[1, 2, 3, 4] k, float[1, 2, 3, 4] v) => (float[1, 2, 3, 4] y) {
        y = Attention(q, k, v) }"""
    assert "Attention" not in ops(same(text_model(body, opset=23)))


def test_hann_window_is_a_constant(same, text_model, ops):
    model = text_model("(float[8] x) => (float[8] y) { w = HannWindow(n) y = Mul(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array(8), "n"))
    assert ops(same(model)) == ["Mul"]


def test_onnx_is_no_newer_than_it_was(text_model):
    """When onnx brings a newer opset that ONNX Runtime runs, MAX_OPSET is to be raised."""
    import onnxruntime

    from sparsec.compiler.ingest.structure import MAX_OPSET

    def runs(opset: int) -> bool:
        model = text_model("(float[2] x) => (float[2] y) { y = Relu(x) }", opset=opset)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:
            return False
        return True

    assert runs(MAX_OPSET)
    assert onnx.defs.onnx_opset_version() >= MAX_OPSET
