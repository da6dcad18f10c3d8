"""Quantised models as integer graphs: the same bytes as ONNX Runtime's, and why a layer stays float."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quantised_models import Quantised

from sparsec.compiler.ingest import ingest
from sparsec.passes import RECOGNISERS, run_pipeline
from sparsec.passes.integer import RecogniseInteger

ENDS = [
    (np.uint8, 0),
    (np.uint8, 255),
    (np.uint8, 113),
    (np.int8, -128),
    (np.int8, 127),
    (np.int8, 6),
]


@pytest.fixture
def recognise(tmp_path):
    """``recognise(model) -> (onnx model with integers, findings)``; the model is checked."""

    def run(model: onnx.ModelProto, pipeline: str = ""):
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        graph = ingest(path)
        findings = run_pipeline(graph, pipeline)
        proto = ir.to_proto(graph)
        onnx.checker.check_model(proto, full_check=True)
        return proto, findings

    return run


@pytest.fixture
def exact(recognise, ort_run):
    """``exact(model, feeds, within=0) -> (operators, findings)``: integers give ONNX Runtime's outputs.

    ``within`` is the number of steps by which bytes may differ.
    """

    def run(model: onnx.ModelProto, feeds: dict, within: int = 0):
        found, findings = recognise(model)
        want = ort_run(model.SerializeToString(), feeds)
        got = ort_run(found.SerializeToString(), feeds, plain=True)
        for name, array in want.items():
            assert got[name].dtype == array.dtype
            if array.dtype.kind == "f":
                scale = np.abs(array).max()
                np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5 * scale, err_msg=name)
            else:
                assert np.ptp(array.astype(int)) > 20, "the network says nothing"
                error = np.abs(got[name].astype(int) - array.astype(int)).max()
                assert error <= within, name
        return Counter(node.op_type for node in found.graph.node), findings

    return run


def normal(rng, shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def image_network(dtype, zero, per_channel: bool) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """A stem, a residual of two scales, concatenation, pools and a classifier with transB."""
    net, axis = Quantised(), 0 if per_channel else None
    least = np.iinfo(dtype).min
    relu_zero = int(least)
    x = net.around(net.input([2, 3, 9, 11]), 0.03, zero, dtype)
    w = net.weight([8, 3, 3, 3], axis)
    stem = net.op("Conv", x, w, net.bias(8, 0.03, w), pads=[1, 1, 1, 1])
    stem = net.around(net.op("Relu", stem), 0.11, relu_zero, dtype)
    w = net.weight([8, 8, 3, 3], axis)
    branch = net.op("Conv", stem, w, net.bias(8, 0.11, w), pads=[1, 1, 1, 1])
    branch = net.around(branch, 0.8, zero, dtype)
    total = net.around(net.op("Add", stem, branch), 0.7, zero, dtype)
    w = net.weight([8, 1, 3, 3], axis)
    deep = net.op("Conv", total, w, group=8, strides=[2, 2], pads=[1, 0, 1, 0])
    deep = net.around(
        net.op("Clip", deep, net.constant(np.float32(0)), net.constant(np.float32(6))),
        6 / 255,
        relu_zero,
        dtype,
    )
    pooled = net.around(
        net.op("MaxPool", total, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 0]), 0.7, zero, dtype
    )
    both = net.around(net.op("Concat", deep, pooled, axis=1), 0.6, zero, dtype)
    mean = net.around(net.op("GlobalAveragePool", both), 0.3, zero, dtype)
    flat = net.around(net.op("Flatten", mean), 0.3, zero, dtype)
    w = net.weight([10, 16], axis)
    y = net.op("Gemm", flat, w, net.bias(10, 0.3, w), transB=1)
    return net.model(net.integers(y, 0.4, zero, dtype), both), (2, 3, 9, 11)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("dtype", "zero"), ENDS)
def test_a_network_of_integers_is_equal_to_the_last_byte(exact, dtype, zero, per_channel):
    model, shape = image_network(dtype, zero, per_channel)
    feeds = {"input0": 2 * normal(np.random.default_rng(zero % 7), shape)}
    ops, findings = exact(model, feeds)
    assert ops["ConvInteger"] == 3 and ops["MatMulInteger"] == 1 and ops["QuantizedAdd"] == 1
    assert not {"Conv", "Gemm", "MatMul", "Relu", "GlobalAveragePool"} & set(ops)
    assert ops["DequantizeLinear"] == 3  # of the output that is float, and of what is concatenated
    applied = {f.before: f.after for f in findings if f.pass_name == RecogniseInteger.NAME}
    assert applied["Conv, Relu, QuantizeLinear"] == "ConvInteger"
    assert applied["Conv, Clip, QuantizeLinear"] == "ConvInteger"
    assert applied["Gemm, QuantizeLinear"] == "MatMulInteger"


def test_it_comes_first():
    assert RECOGNISERS[0] is RecogniseInteger


@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, 128), (np.uint8, 3), (np.int8, 0)])
def test_matmuls_between_floats(exact, dtype, zero):
    """Bias as float, gelu, softmax and LayerNormalization between layers stay float; sums are exact."""
    net = Quantised()
    x = net.around(net.input([3, 7, 24]), 0.04, zero, dtype)
    wide = net.op("MatMul", x, net.weight([24, 33], 1))
    wide = net.op("Add", wide, net.constant(normal(net.rng, 33)))
    wide = net.op("Mul", wide, net.op("Sigmoid", wide))
    wide = net.around(net.op("Softmax", wide, axis=-1), 1 / 255, 0 if dtype == np.uint8 else -128, dtype)
    y = net.op("MatMul", wide, net.weight([33, 24]))
    ops, _ = exact(net.model(y), {"input0": normal(net.rng, (3, 7, 24))})
    assert ops["MatMulInteger"] == 2 and not ops["MatMul"]


def test_products_of_integers(exact):
    net = Quantised()
    a = net.around(net.input([5, 17]), 0.02, 100)
    b = net.around(net.input([5, 17]), 0.013, 31)
    y = net.integers(net.op("Mul", a, b), 0.011, 91)
    ops, _ = exact(net.model(y), {f"input{i}": normal(net.rng, (5, 17)) for i in range(2)})
    assert ops["Mul"] == 2  # of int32, and by the factor


@pytest.mark.parametrize("zero", [3, 128])
def test_average_pools(exact, zero):
    net = Quantised()
    x = net.around(net.input([1, 5, 8, 7]), 0.02, zero)
    y = net.integers(net.op("AveragePool", x, kernel_shape=[3, 2], strides=[2, 1]), 0.013, zero)
    exact(net.model(y), {"input0": normal(net.rng, (1, 5, 8, 7))})


def test_one_weight_of_two_layers(exact):
    net = Quantised()
    weight = net.weight([12, 12], 1)
    x = net.around(net.input([9, 12]), 0.03, 120)
    x = net.around(net.op("MatMul", x, weight), 0.2, 130)
    ops, _ = exact(
        net.model(net.integers(net.op("MatMul", x, weight), 1.3, 126)), {"input0": normal(net.rng, (9, 12))}
    )
    assert ops["MatMulInteger"] == 2


def test_weights_behind_a_quantisation_of_floats(exact):
    net = Quantised()
    w = net.constant(normal(net.rng, (16, 12)) / 9)
    w = net.around(w, 0.004, 0, np.int8)
    x = net.around(net.input([9, 12]), 0.03, 120)
    y = net.op("MatMul", x, net.op("Transpose", w, perm=[1, 0]))
    ops, _ = exact(net.model(net.integers(y, 0.02, 126)), {"input0": normal(net.rng, (9, 12))})
    assert ops["MatMulInteger"] == 1 and not ops["Transpose"]


@pytest.mark.parametrize("zero", [-9, 1])
def test_zero_points_of_weights(exact, zero):
    """Shifted away; where that leaves int8, the weight is the sum of two."""
    net = Quantised()
    x = net.around(net.input([9, 12]), 0.03, 120)
    y = net.integers(net.op("MatMul", x, net.weight([12, 8], 1, zero=zero)), 0.1, 126)
    ops, findings = exact(net.model(y), {"input0": normal(net.rng, (9, 12))}, within=1)
    assert ops["MatMulInteger"] == 1 and ops["NMMatMulInteger"] == 1  # hardly anything is left for the second
    assert "zero points beyond int8: two products" in findings[0].reason


def test_bytes_of_a_weight_around_its_middle(exact):
    net = Quantised()
    codes = net.constant(net.rng.integers(1, 256, (12, 8)).astype(np.uint8))
    x = net.around(net.input([9, 12]), 0.03, 120)
    y = net.op("MatMul", x, net.reals(codes, 0.01, np.uint8(128)))
    ops, _ = exact(net.model(net.integers(y, 0.05, 126)), {"input0": normal(net.rng, (9, 12))})
    assert ops["MatMulInteger"] == 1


def test_a_bias_with_a_zero_point(recognise, ort_run):
    """ONNX Runtime's fused layer ignores it; its plain operators do not."""
    net = Quantised()
    w = net.weight([4, 3, 1, 1], 0)
    x = net.around(net.input([1, 3, 5, 5]), 0.03, 120)
    scale = next(c for c in net.constants if c.name == net.nodes[0].input[1])
    scales = onnx.numpy_helper.to_array(scale) * np.float32(0.03)
    bias = net.reals(
        net.constant(np.array([9, -800, 70, 1200], np.int32)), scales, np.full(4, 500, np.int32), 0
    )
    model = net.model(net.op("Conv", x, w, bias))
    feeds = {"input0": normal(net.rng, (1, 3, 5, 5))}
    found, _ = recognise(model)
    (got,) = ort_run(found.SerializeToString(), feeds, plain=True).values()
    (want,) = ort_run(model.SerializeToString(), feeds, plain=True).values()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_an_embedding(exact):
    net = Quantised()
    ids = net.input([2, 6], np.int64)
    table = net.reals(net.constant(net.rng.integers(0, 256, (40, 16)).astype(np.uint8)), 0.02, np.uint8(120))
    words = net.around(net.op("Gather", table, ids), 0.02, 120)
    y = net.op("MatMul", words, net.weight([16, 8], 1))
    ops, _ = exact(net.model(net.integers(y, 0.1, 126)), {"input0": np.arange(12).reshape(2, 6) * 3})
    assert not ops["DequantizeLinear"] and ops["QuantizeLinear"] == 1


def test_outputs_in_the_middle_of_a_pair(exact):
    net = Quantised()
    x = net.around(net.input([4, 8]), 0.03, 3, np.int8)
    codes = net.integers(net.op("MatMul", x, net.weight([8, 8])), 0.1, -4, np.int8)
    ops, _ = exact(net.model(codes, net.reals(codes, 0.1, np.int8(-4))), {"input0": normal(net.rng, (4, 8))})
    assert ops["MatMulInteger"] == 1


def test_integers_as_input_that_are_moved(exact):
    net = Quantised()
    codes = net.op("Transpose", net.input([1, 5, 6, 3], np.int8), perm=[0, 3, 1, 2])
    x = net.reals(codes, 0.01, np.int8(-7))
    y = net.integers(net.op("Conv", x, net.weight([4, 3, 3, 3], 0)), 0.09, 2, np.int8)
    feeds = {"input0": net.rng.integers(-128, 128, (1, 5, 6, 3)).astype(np.int8)}
    ops, _ = exact(net.model(net.op("Reshape", y, net.constant(np.array([4, -1])))), feeds)
    assert ops["ConvInteger"] == 1


def declined(model, recognise) -> list[str]:
    proto, findings = recognise(model)
    assert not {"MatMulInteger", "ConvInteger"} & {node.op_type for node in proto.graph.node}
    return [f.reason for f in findings if f.outcome == "declined"]


def test_a_product_of_two_activations_is_told(recognise):
    net = Quantised()
    a, b = net.around(net.input([3, 4, 5]), 0.1, 3), net.around(net.input([3, 5, 6]), 0.1, 3)
    (reason,) = declined(net.model(net.op("MatMul", a, b)), recognise)
    assert reason == "both operands are activations: it stays float32 and dequantises them in passing"


def test_scales_along_the_reduction_are_told(recognise):
    net = Quantised()
    x = net.around(net.input([3, 5]), 0.1, 3)
    (reason,) = declined(net.model(net.op("MatMul", x, net.weight([5, 6], 0))), recognise)
    assert reason == "the scales of its weight are not by output channel; quantise along that axis"


def test_other_widths_are_told(recognise):
    net = Quantised()
    x = net.around(net.input([3, 5]), 0.1, 3)
    codes = net.constant(np.arange(30, dtype=np.int32).reshape(5, 6))
    (reason,) = declined(net.model(net.op("MatMul", x, net.reals(codes, 0.1, np.int32(0)))), recognise)
    assert reason == "integers of int32 and UINT8; the kernels multiply 8 bits"


def test_a_weight_alone_is_no_integer_layer(recognise):
    net = Quantised()
    model = net.model(net.op("MatMul", net.input([3, 5]), net.weight([5, 6], 1)))
    proto, findings = recognise(model)
    assert [node.op_type for node in proto.graph.node] == ["MatMul"] and not findings


def test_a_model_of_floats_is_left_alone():
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    model = ir.from_proto(proto)
    assert not RecogniseInteger()(model).modified
    assert [node.op_type for node in model.graph] == ["Relu"]


def test_sparse_integers(exact):
    """Zeros of an int8 weight are zeros of its layer."""
    net = Quantised()
    codes = net.rng.integers(1, 100, (32, 32)).astype(np.int8)
    codes.reshape(8, 4, 32)[:, 2:] = 0
    w = net.reals(net.constant(codes), np.full(32, 0.01, np.float32), np.zeros(32, np.int8), 1)
    image = net.rng.integers(1, 100, (32, 8, 3, 3)).astype(np.int8)
    image.reshape(32, 2, 4, 3, 3)[:, :, 1:] = 0
    k = net.reals(net.constant(image), 0.01, np.int8(0))
    x = net.around(net.input([1, 8, 5, 5]), 0.1, 120)
    y = net.around(net.op("Conv", x, k), 0.3, 119)
    y = net.op("Transpose", y, perm=[0, 2, 3, 1])
    model = net.model(net.integers(net.op("MatMul", y, w), 0.4, 117))
    ops, findings = exact(model, {"input0": normal(net.rng, (1, 8, 5, 5))})
    assert ops["NMMatMulInteger"] == 1 and ops["NMConvInteger"] == 1
    reasons = {f.after: f.reason for f in findings if f.pass_name == "recognise-nm"}
    assert reasons["ai.sparsec.NMMatMulInteger"].startswith("2:4")
    assert reasons["ai.sparsec.NMConvInteger"].startswith("1:4")


@pytest.mark.parametrize("published", ["mlperf_tiny_ic_resnet8_int8_qdq"])
def test_the_published_model(shared_models, recognise, ort_run, published):
    """Bit for bit up to the softmax, which ONNX Runtime takes from a table of integers."""
    path = shared_models / f"{published}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    model = onnx.load(path)
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    logits = next(n for n in model.graph.node if n.output[0] == softmax.input[0]).input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.INT8, [None, 10]))
    found, _ = recognise(model)
    rng, smooth = np.random.default_rng(3), np.linspace(-90, 90, 32)
    for _ in range(4):
        noise = rng.integers(-128, 128, (1, 32, 32, 3)).astype(np.int8)
        natural = smooth[None, None, :, None] * rng.normal(size=(1, 1, 1, 3)) + rng.normal(0, 9, noise.shape)
        for image in (noise, np.clip(natural, -128, 127).astype(np.int8)):
            want = ort_run(model.SerializeToString(), {"input_1_int8": image})
            got = ort_run(found.SerializeToString(), {"input_1_int8": image}, plain=True)
            np.testing.assert_array_equal(got[logits], want[logits])
            assert np.abs(got["Identity_int8"].astype(int) - want["Identity_int8"]).max() <= 1
