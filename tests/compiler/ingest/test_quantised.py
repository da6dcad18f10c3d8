"""Operators on integers, ONNX's and ONNX Runtime's own, become QDQ form with the same bytes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler.ingest import ingest

MS = "com.microsoft"
CODES = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}


class One:
    """A model of one node on bytes: ``x`` and, where asked, ``z`` are inputs, all else is constant."""

    def __init__(self, dtype=np.uint8):
        self.rng, self.dtype, self.constants = np.random.default_rng(3), dtype, []

    def of(self, array) -> str:
        """The name of a constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def scaled(self, scale, zero, dtype=None) -> list[str]:
        """A scale and its zero point; 1-D ones where they are lists."""
        return [self.of(np.float32(scale)), self.of(np.asarray(zero, dtype or self.dtype))]

    def model(self, op, inputs, shapes, y_shape, domain="", y_type=None, **attributes) -> onnx.ModelProto:
        node = helper.make_node(op, inputs, ["y"], name="it", domain=domain, **attributes)
        kind = CODES[self.dtype]
        given = [helper.make_tensor_value_info(n, kind, s) for n, s in zip("xz", shapes, strict=False)]
        result = [helper.make_tensor_value_info("y", y_type or kind, y_shape)]
        graph = helper.make_graph([node], "g", given, result, self.constants)
        imports = [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)


@pytest.fixture
def same_codes(save, ort_run):
    """``same_codes(one, model, *shapes)``: what ingest makes of it gives ONNX Runtime's bytes, which may
    come from a table: one step apart at most, and in a hundredth of the places."""

    def check(one, model, *shapes):
        low, high = np.iinfo(one.dtype).min, np.iinfo(one.dtype).max
        feeds = {
            name: one.rng.integers(low, high + 1, shape).astype(one.dtype)
            for name, shape in zip("xz", shapes, strict=False)
        }
        made = ir.to_proto(ingest(save(model), log=lambda line: None))
        assert not any(node.domain == MS or "QLinear" in node.op_type for node in made.graph.node)
        want = ort_run(model.SerializeToString(), feeds)["y"]
        got = ort_run(made.SerializeToString(), feeds)["y"]
        assert got.dtype == want.dtype
        assert np.ptp(want.astype(np.float64)) > 20 or want.dtype.kind == "f"
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
        else:
            apart = np.abs(got.astype(int) - want)
            assert apart.max() <= 1 and (apart > 0).mean() <= 0.01

    return check


@pytest.mark.parametrize("domain", ["", MS])
@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, 131), (np.int8, -128)])
def test_convolutions(same_codes, dtype, zero, domain):
    one = One(dtype)
    weight = one.of(one.rng.integers(-127, 128, (6, 3, 3, 3)).astype(np.int8))
    w = [one.of(np.linspace(0.01, 0.02, 6, dtype=np.float32)), one.of(np.zeros(6, np.int8))]
    bias = one.of(one.rng.integers(-9000, 9000, 6).astype(np.int32))
    inputs = ["x", *one.scaled(0.05, zero), weight, *w, *one.scaled(0.6, zero), bias]
    model = one.model(
        "QLinearConv", inputs, [(1, 3, 8, 9)], (1, 6, 4, 9), domain, pads=[1] * 4, strides=[2, 1]
    )
    same_codes(one, model, (1, 3, 8, 9))


@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, 131), (np.int8, 3)])
def test_matrices(same_codes, dtype, zero):
    one = One(dtype)
    weight = one.of(one.rng.integers(-127, 128, (33, 9)).astype(np.int8))
    w = [one.of(np.linspace(0.01, 0.02, 9, dtype=np.float32)), one.of(np.zeros(9, np.int8))]
    inputs = ["x", *one.scaled(0.05, zero), weight, *w, *one.scaled(1.1, zero)]
    same_codes(one, one.model("QLinearMatMul", inputs, [(7, 33)], (7, 9)), (7, 33))


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(same_codes, transposed, floats):
    one = One()
    weight = one.rng.integers(-127, 128, (33, 9)).astype(np.int8)
    w = [one.of(np.float32(0.01)), one.of(np.int8(0))]
    bias = one.of(one.rng.integers(-9000, 9000, 9).astype(np.int32))
    inputs = ["x", *one.scaled(0.05, 131), one.of(weight.T.copy() if transposed else weight), *w, bias]
    inputs += [] if floats else one.scaled(0.5, 120)
    y_type = TensorProto.FLOAT if floats else None
    made = one.model("QGemm", inputs, [(7, 33)], (7, 9), MS, y_type, transB=transposed)
    same_codes(one, made, (7, 33))


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, 131), (np.int8, -3)])
def test_two_activations(same_codes, op, dtype, zero):
    one = One(dtype)
    out = one.scaled(0.06 if op == "QLinearAdd" else 0.2, zero)
    inputs = ["x", *one.scaled(0.05, zero), "z", *one.scaled(0.03, 7), *out]
    same_codes(one, one.model(op, inputs, [(2, 5, 9)] * 2, (2, 5, 9), MS), (2, 5, 9), (2, 5, 9))


@pytest.mark.parametrize(
    ("op", "out", "y_shape", "attributes"),
    [
        ("QLinearSigmoid", (1 / 256, 0), (1, 5, 8, 9), {}),
        ("QLinearLeakyRelu", (0.04, 40), (1, 5, 8, 9), {"alpha": 0.2}),
        ("QLinearAveragePool", (0.03, 128), (1, 5, 6, 8), {"kernel_shape": [3, 2]}),
        ("QLinearGlobalAveragePool", (0.005, 128), (1, 5, 1, 1), {}),
        ("QLinearSoftmax", (1 / 256, 0), (1, 5, 8, 9), {"axis": -1, "opset": 13}),
    ],
)
def test_one_activation(same_codes, op, out, y_shape, attributes):
    one = One()
    inputs = ["x", *one.scaled(0.03, 128), *one.scaled(*out)]
    same_codes(one, one.model(op, inputs, [(1, 5, 8, 9)], y_shape, MS, **attributes), (1, 5, 8, 9))


def test_concatenation(same_codes):
    one = One()
    inputs = [*one.scaled(0.06, 120), "x", *one.scaled(0.05, 131), "z", *one.scaled(0.03, 7)]
    made = one.model("QLinearConcat", inputs, [(2, 5, 9), (2, 3, 9)], (2, 8, 9), MS, axis=1)
    same_codes(one, made, (2, 5, 9), (2, 3, 9))


def test_floats_of_integers(same_codes):
    one = One()
    weight = one.of(one.rng.integers(-127, 128, (33, 9)).astype(np.int8))
    bias = one.of(one.rng.standard_normal(9).astype(np.float32))
    (a_scale, a_zero), b_scale = one.scaled(0.05, 131), one.of(np.linspace(0.01, 0.02, 9, dtype=np.float32))
    inputs = ["x", weight, a_scale, b_scale, a_zero, one.of(np.zeros(9, np.int8)), bias]
    made = one.model("MatMulIntegerToFloat", inputs, [(7, 33)], (7, 9), MS, TensorProto.FLOAT)
    same_codes(one, made, (7, 33))


def test_quantised_when_it_runs(save, ort_run):
    one = One()
    weight = one.of(one.rng.integers(-127, 128, (33, 9)).astype(np.int8))
    bias = one.of(one.rng.standard_normal(9).astype(np.float32))
    made = one.model(
        "DynamicQuantizeMatMul",
        ["x", weight, one.of(np.float32(0.01)), one.of(np.int8(0)), bias],
        [(7, 33)],
        (7, 9),
        MS,
        TensorProto.FLOAT,
    )
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    feeds = {"x": one.rng.standard_normal((7, 33)).astype(np.float32)}
    got = ort_run(ir.to_proto(ingest(save(made), log=lambda line: None)).SerializeToString(), feeds)["y"]
    want = ort_run(made.SerializeToString(), feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_an_operator_of_pixels_in_rows_is_refused(refusal):
    one = One()
    inputs = ["x", *one.scaled(0.03, 128), *one.scaled(0.03, 128)]
    made = one.model("QLinearGlobalAveragePool", inputs, [(1, 8, 9, 5)], (1, 1, 1, 5), MS, channels_last=1)
    assert "QLinearGlobalAveragePool" in refusal(made)
