"""``sparsec quantize``: QDQ models that onnx's checker and ONNX Runtime take, and what is refused."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler import quantize
from sparsec.compiler.allocation.budget import outputs
from sparsec.compiler.calibration import read_batches
from sparsec.compiler.cli.quantize import RANGES, ROUNDINGS
from sparsec.compiler.quantize import BEST, QuantizeRequest, quantize_on
from sparsec.passes.quantize import RANGES as KNOWN_RANGES
from sparsec.passes.quantize import ROUNDINGS as KNOWN_ROUNDINGS

RNG = np.random.default_rng(0)


@pytest.fixture
def dense(digits):
    return digits.with_name("dense.onnx")


@pytest.fixture(scope="session")
def images(digits):
    with np.load(digits.with_name("test.npz")) as data:
        return data["images"].astype(np.float32), data["labels"]


@pytest.fixture
def calib(images, tmp_path):
    path = tmp_path / "calib.npz"
    np.savez(path, image=images[0][:64], labels=images[1][:64])
    return path


def perceptron(tmp_path, first=None, bias=None, width=31, second=None):
    """x [n, 15] -> MatMul, Add, Relu -> MatMul (no bias) -> y, as a file; and data for it."""
    first = RNG.standard_normal((15, width)) if first is None else first
    bias = RNG.standard_normal(width) if bias is None else bias
    second = RNG.standard_normal((width, 7)) if second is None else second
    nodes = [
        helper.make_node("MatMul", ["x", "P"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b"], ["c"], name="bias"),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("MatMul", ["d", "Q"], ["y"], name="second"),
    ]
    weights = {"P": first, "b": bias, "Q": second}
    constants = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()]
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])]
        for name, size in (("x", 15), ("y", 7))
    ]
    graph = helper.make_graph(nodes, "g", *ports, constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "m.onnx",
    )
    x = RNG.standard_normal((48, 15)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "m.onnx", tmp_path / "x.npz", x


def weights_of(path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_the_spellings_are_those_of_the_passes():
    assert (BEST, *KNOWN_RANGES) == RANGES
    assert tuple(KNOWN_ROUNDINGS) == ROUNDINGS


def test_digits_keep_their_labels(call, dense, calib, images, tmp_path, ort_run):
    out = tmp_path / "out.onnx"
    result = call("quantize", dense, "--calib", calib, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    onnx.checker.check_model(str(out), full_check=True)
    found = json.loads(result.stdout)
    assert {layer["precision"] for layer in found["layers"]} <= {"int8", "float32"}
    assert sum(layer["precision"] == "int8" for layer in found["layers"]) >= 2
    assert all(layer["error_after"] <= 1.05 * layer["error_before"] for layer in found["layers"])
    ends = ort_run(out, {"image": images[0]})["logits"], ort_run(dense, {"image": images[0]})["logits"]
    right = [float((end.argmax(axis=1) == images[1]).mean()) for end in ends]
    assert right[0] >= right[1] - 0.01
    assert 0 < np.abs(ends[0] - ends[1]).max() < 0.1 * np.abs(ends[1]).max()


@pytest.mark.parametrize("method", ["sparsegpt", "awp"])
def test_a_pattern_comes_with_the_integers(call, tmp_path, ort_run, method):
    model, data, x = perceptron(tmp_path, width=64)
    out = tmp_path / "out.onnx"
    options = (
        "--pattern",
        "2:4x16",
        "--no-group",
        "--min-size",
        "0",
        "--floats",
        "0",
        "--method",
        method,
    )
    result = call("quantize", model, "--calib", data, "-o", out, *options, "--json")
    assert result.exit_code == 0, result.stderr
    weight = weights_of(out)["Q_quantized"]
    assert weight.dtype == np.int8 and weight.shape == (64, 7)
    assert (weight != 0).any(axis=1).reshape(-1, 4).sum(axis=1).max() == 2
    assert ort_run(out, {"x": x})["y"].shape == (48, 7)
    assert all(
        layer["pattern"] == "2:4x16" or "2:4" in layer["pattern"]
        for layer in json.loads(result.stdout)["layers"]
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_pruned_weight_keeps_its_zeros(call, tmp_path, ort_run, rounding):
    kept = RNG.permuted(np.tile([True, True, False, False], (7, 8, 1)), axis=2).reshape(7, 32)
    second = np.where(kept.T, RNG.standard_normal((32, 7)), 0.0)
    model, data, x = perceptron(tmp_path, width=32, second=second)
    out = tmp_path / "out.onnx"
    given = ort_run(model, {"x": x})["y"]
    options = ("--min-size", "0", "--floats", "0", "--rounding", rounding)
    result = call("quantize", model, "--calib", data, "-o", out, *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert not weights_of(out)["Q_quantized"][second == 0].any()
    assert np.abs(ort_run(out, {"x": x})["y"] - given).max() < 0.05 * np.abs(given).max()


def test_channels_that_differ_are_evened_out(call, tmp_path, ort_run):
    spread = np.exp(RNG.uniform(-5, 0, 31))
    model, data, x = perceptron(
        tmp_path, RNG.standard_normal((15, 31)) * spread, RNG.standard_normal(31) * spread
    )
    graph = onnx.load(model)
    for tensor in graph.graph.initializer:
        if tensor.name == "Q":
            array = numpy_helper.to_array(tensor) / spread[:, None].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, "Q"))
    onnx.save(graph, model)
    expected, errors = ort_run(model, {"x": x})["y"], {}
    for option in ("--migrate", "--no-migrate"):
        out = tmp_path / f"{option}.onnx"
        assert call("quantize", model, "--calib", data, "-o", out, option, "--floats", "0").exit_code == 0
        errors[option] = np.square(ort_run(out, {"x": x})["y"] - expected).mean()
        scaled = {node.input[0] for node in onnx.load(out).graph.node if node.op_type == "Mul"}
        assert scaled <= {"x"}  # those of the second input went into the layer before, through its Relu
    assert errors["--migrate"] < 0.1 * errors["--no-migrate"]


@pytest.mark.parametrize("standard", ["Gemm", "Conv"])
def test_biases_are_int32_in_steps_of_both_scales(call, tmp_path, ort_run, standard):
    shape, sizes = ((33, 17), ["n", 17]) if standard == "Gemm" else ((33, 17, 3, 3), ["n", 17, 5, 5])
    weight, bias = RNG.standard_normal(shape), RNG.standard_normal(33)
    weight[3] = 0.0  # a channel that makes its bias alone
    attributes = {"transB": 1} if standard == "Gemm" else {"pads": [1, 1, 1, 1]}
    node = helper.make_node(standard, ["x", "w", "b"], ["y"], name="layer", **attributes)
    constants = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in (("w", weight), ("b", bias))]
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, *sizes[2:]])]
        for name, count in (("x", 17), ("y", 33))
    ]
    graph = helper.make_graph([node], "g", *ports, constants)
    model, data, out = tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "out.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), model)
    x = RNG.standard_normal((40, 17, *([5, 5] if standard == "Conv" else []))).astype(np.float32)
    np.savez(data, x=x)
    assert call("quantize", model, "--calib", data, "-o", out, "--floats", "0", "--no-migrate").exit_code == 0
    onnx.checker.check_model(str(out), full_check=True)
    found = weights_of(out)
    assert found["w_quantized"].dtype == np.int8 and found["w_bias_quantized"].dtype == np.int32
    np.testing.assert_array_equal(found["w_bias_scale"], found["w_scale"] * found["x_scale"])
    got, wanted = (ort_run(path, {"x": x})["y"] for path in (out, model))
    assert np.abs(got - wanted).max() < 0.03 * np.abs(wanted).max()
    np.testing.assert_allclose(got[:, 3], bias[3], rtol=1e-2)


def test_a_budget_takes_layers_back(call, one_line, tmp_path):
    model, data, _ = perceptron(tmp_path)
    out = tmp_path / "out.onnx"
    shared = ("quantize", model, "--calib", data, "-o", out, "--floats", "0", "--json")
    strict = call(*shared, "--max-error", "0.00001")
    assert strict.exit_code == 0, strict.stderr
    assert {layer["precision"] for layer in json.loads(strict.stdout)["layers"]} == {"float32"}
    loose = call(*shared, "--max-error", "0.5")
    assert {layer["precision"] for layer in json.loads(loose.stdout)["layers"]} == {"int8"}
    missing = call(*shared, "--max-drop", "0.01")
    assert missing.exit_code == 1
    assert "--max-drop needs --metric FILE.py:NAME or an array `labels`" in one_line(missing)


def nan(x):
    return np.where(np.arange(15) == 3, np.nan, x).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (lambda x: {"z": x}, "has no array 'x'; it holds z"),
        (lambda x: {"x": nan(x)}, "'x' holds NaN or infinity; leave such samples out"),
        (lambda x: {"x": 0 * x}, "its input 'x' is zero on all calibration data, which gives it no range"),
        (
            lambda x: {"x": np.float32(1e37) * x},
            "is not finite on the calibration data: it holds NaN or infinity",
        ),
    ],
)
def test_data_that_tells_nothing_is_refused(call, one_line, tmp_path, arrays, words):
    model, data, x = perceptron(tmp_path, 99 * RNG.standard_normal((15, 31)), np.full(31, -1.0))
    np.savez(data, **arrays(x))
    result = call("quantize", model, "--calib", data, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 1 and words in one_line(result)
    assert not (tmp_path / "out.onnx").exists()


def test_constant_activations_have_a_range(call, tmp_path, ort_run):
    model, data, x = perceptron(tmp_path)
    np.savez(data, x=np.full_like(x, 2.5))
    out = tmp_path / "out.onnx"
    assert call("quantize", model, "--calib", data, "-o", out).exit_code == 0
    got, wanted = (ort_run(path, {"x": np.full_like(x, 2.5)})["y"] for path in (out, model))
    assert np.abs(got - wanted).max() < 0.01 * np.abs(wanted).max()


def test_calibration_data_are_required(call):
    result = call("quantize", "m.onnx", "-o", "out.onnx")
    assert result.exit_code == 2 and "Missing option '--calib'" in result.stderr


def test_a_threshold_promotes_zeros(call, tmp_path):
    model, data, _ = perceptron(tmp_path)
    kept = []
    for options in ((), ("--threshold", "40"), ("--threshold", "40", "--soft")):
        result = call(
            *("quantize", model, "--calib", data, "-o", tmp_path / "out.onnx", "--rounding", "gpfq"),
            *(*options, "--json"),
        )
        assert result.exit_code == 0, result.stderr
        kept.append(np.mean([layer["kept"] for layer in json.loads(result.stdout)["layers"]]))
    assert kept[1] < kept[0] - 0.1 and kept[2] != kept[1]
    result = call("quantize", model, "--calib", data, "-o", tmp_path / "out.onnx", "--soft")
    assert result.exit_code == 2 and "--soft goes with --threshold" in result.stderr
    result = call("quantize", model, "--calib", data, "-o", tmp_path / "out.onnx", "--threshold", "40")
    assert result.exit_code == 2 and "--threshold goes with --rounding gpfq" in result.stderr


def test_a_name_that_no_layer_has(call, one_line, tmp_path):
    model, data, _ = perceptron(tmp_path)
    result = call("quantize", model, "--calib", data, "-o", tmp_path / "out.onnx", "--skip", "third")
    assert result.exit_code == 1 and "skip=third must match a layer" in one_line(result)


def test_sums_between_convolutions_read_integers(call, tmp_path, ort_run):
    """x -> Conv -> Relu -> Conv -> Add(Relu) -> y: the sum reads what the second convolution reads."""
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["y"], name="sum"),
    ]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 5, 5])] for name in "xy"]
    constants = [
        numpy_helper.from_array(RNG.standard_normal((8, 8, 3, 3)).astype(np.float32), name) for name in "vw"
    ]
    graph = helper.make_graph(nodes, "g", *ports, constants)
    model, data, out = tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "out.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), model)
    x = RNG.standard_normal((16, 8, 5, 5)).astype(np.float32)
    np.savez(data, x=x)
    assert call("quantize", model, "--calib", data, "-o", out, "--floats", "0").exit_code == 0
    onnx.checker.check_model(str(out), full_check=True)
    made = {name: node for node in onnx.load(out).graph.node for name in node.output}
    (total,) = (node for node in made.values() if node.op_type == "Add")
    assert made[total.input[0]].op_type == "DequantizeLinear"
    got, wanted = (ort_run(path, {"x": x})["y"] for path in (out, model))
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_compile_quantises_and_says_what_that_moves(call, tmp_path):
    model, data, _ = perceptron(tmp_path, width=64)
    out = tmp_path / "m.sparsec"
    result = call(
        "compile", model, "--precision", "int8", "--calib", data, "--target", "native", "-o", out, "--json"
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["precision"] == "int8"
    assert "MatMulInteger" in {layer["op"] for layer in report["layers"]}
    found = {f["node"]: f for f in report["findings"] if f["pass_name"] == "quantize"}
    assert set(found) == {"first", "second"}
    assert report["receipt"]["max_error"]["y"]["within"]
    moved = report["receipt"]["float32"]["y"]
    assert 0 < moved["max_rel_to_scale"] < 0.05 and moved["cosine"] > 0.999


def test_int8_needs_data_and_floats(call, one_line, tmp_path):
    model, data, _ = perceptron(tmp_path)
    result = call("compile", model, "--precision", "int8", "-o", tmp_path / "m.sparsec")
    assert result.exit_code == 1 and "--precision int8 needs --calib DATA.npz" in one_line(result)
    out = tmp_path / "out.onnx"
    assert call("quantize", model, "--calib", data, "-o", out, "--floats", "0").exit_code == 0
    again = call("quantize", out, "--calib", data, "-o", tmp_path / "again.onnx")
    assert again.exit_code == 1 and "the model is quantised already" in one_line(again)


def test_weights_alone_are_rounded_on_data(call, one_line, tmp_path, ort_run):
    model, data, x = perceptron(tmp_path, width=64)
    out, errors = tmp_path / "out.onnx", []
    given = ("sparsify", model, "--passes", "quantise-weights{bits=4,min_size=0}", "-o", out)
    for options in ((), ("--calib", data)):
        assert call(*given, *options).exit_code == 0
        errors.append(np.square(ort_run(out, {"x": x})["y"] - ort_run(model, {"x": x})["y"]).mean())
    assert errors[1] < 0.6 * errors[0]
    pattern = ("--pattern", "2:4x16", "--method", "sparsegpt", "--no-group", "--min-size", "0")
    assert call(*given, "--calib", data, *pattern).exit_code == 0  # pruned first
    (node,) = (n for n in onnx.load(out).graph.node if n.name == "second")
    attributes = {a.name: a.i for a in node.attribute}
    assert node.op_type == "WeightQuantMatMul" and (attributes["n"], attributes["m"]) == (2, 4)
    np.savez(data, x=1e37 * x)
    result = call(*given, "--calib", data)
    assert result.exit_code == 1 and "'second' is not finite on the calibration data" in one_line(result)


def test_layers_behind_floats_are_fitted_to_what_they_read(tmp_path, monkeypatch):
    """Two layers, the first of which stays float32: the second no longer takes back what it did."""
    path, data, x = perceptron(tmp_path)
    given = ir.load(path)
    feeds, wanted = read_batches(str(data), given), outputs(given, [{"x": x}])[0]["y"]
    request = QuantizeRequest(str(data), floats=1.0, rounding="nearest", migrate=False)
    share = {"first": 0.5, "second": 0.0}

    def ranked(model, given, outcomes, feeds, log):
        return [([outcome], share[outcome.report["node"]]) for outcome in outcomes]

    monkeypatch.setattr(quantize, "_ranked", ranked)
    errors, lines = [], []
    for behind in (lambda model, names: set(), quantize._behind):
        monkeypatch.setattr(quantize, "_behind", behind)
        model = ir.load(path)
        made = quantize_on(model, feeds, request, lines.append)
        found = outputs(model, [{"x": x}])[0]["y"]
        errors.append(np.square(found - wanted).mean())
        assert [layer["precision"] for layer in made.layers] == ["float32", "int8"]
        assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 1
    assert lines.count("quantise once more, 1 of 2 layers in float32") == 1
    assert errors[1] < errors[0]
