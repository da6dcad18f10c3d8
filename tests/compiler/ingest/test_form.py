"""The whole of ingest on small models, each made for one trap; the oracle is ONNX Runtime on the original."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from sparsec.compiler.ingest import OPSET, ingest


def test_result_is_in_the_fixed_form(same, text_model, ops):
    body = "(float[N, 4] x) => (float[N, 4] y) <float[4] b = {1, 2, 3, 4}> { i = Identity(x) y = Add(i, b) }"
    model = text_model(body, opset=9)
    model.graph.input.append(helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [4]))
    result = same(model)
    assert result.graph.opset_imports == {"": OPSET} and result.ir_version == 10
    assert [v.name for v in result.graph.inputs] == ["x"] and ops(result) == ["Add"]


def test_shape_arithmetic_vanishes(same, text_model, ops):
    body = """(float[N, T, 6] x) => (float[N, T, 2, 3] y) {
        s = Shape(x) zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>()
        n = Gather(s, zero) t = Gather(s, one) h = Constant<value_ints=[2]>() d = Constant<value_ints=[-1]>()
        target = Concat<axis=0>(n, t, h, d) y = Reshape(x, target) }"""
    assert ops(same(text_model(body), dims={"N": 2, "T": 5})) == ["Reshape"]


def test_shape_of_computed_values_vanishes(same, text_model, ops):
    body = """(float[N, 6] x) => (float[M] y) {
        a = Slice(x, lo, hi) s = Shape(a) m = ReduceProd<keepdims=0>(s)
        u = Unsqueeze(m, lo) y = Reshape(a, u) }"""
    model = text_model(body, opset=13)
    for name, value in (("lo", [0]), ("hi", [2])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    assert ops(same(model, dims={"N": 4})) == ["Slice", "Reshape"]


def test_weights_of_any_size_are_folded(same, text_model, ops):
    weight = np.random.default_rng(0).integers(-100, 100, (700, 600)).astype(np.int8)
    model = text_model(
        """(float[600, 700] x) => (float[600, 700] y) {
        f = DequantizeLinear(w, scale) t = Transpose(f) y = Add(x, t) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "scale"))
    assert ops(same(model)) == ["Add"]


def test_constants_do_not_blow_up(same, text_model, ops):
    model = text_model("(float[1] x) => (float[2048, 512] y) { c = Expand(v, s) y = Add(c, x) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "v"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2048, 512]), "s"))
    assert ops(same(model)) == ["Expand", "Add"]


def test_random_numbers_are_not_folded(refusal, text_model):
    body = "(float[2] x) => (float[2] y) { r = RandomNormal<shape=[2], seed=1.0>() y = Add(x, r) }"
    assert "RandomNormal 'RandomNormal_0' (ai.onnx opset 20; no input)" in refusal(text_model(body))


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("(float[2, 3] x) => (float[2, 3] y) { y = Identity(x) }", ["Identity"]),
        (
            "(float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { y = Relu(x) z = Identity(y) }",
            ["Relu", "Identity"],
        ),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) b = Identity(a) y = Identity(b) }", ["Relu"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = Dropout(a) }", ["Relu"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = Cast<to=1>(a) }", ["Relu"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = CastLike(a, x) }", ["Relu"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = Transpose<perm=[0, 1]>(a) }", ["Relu"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = Concat<axis=0>(a) }", ["Relu"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = Sum(a) }", ["Relu"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = Flatten(a) }", ["Relu"]),
        ("(float[2, 3] x) => (float[3, 2] y) { a = Relu(x) y = Transpose(a) }", ["Relu", "Transpose"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) b = Relu(x) y = Add(a, b) }", ["Relu", "Add"]),
        ("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) dead = Neg(x) y = Neg(a) }", ["Relu", "Neg"]),
        ("(float[2, 3] x) => (float[2] y) { y = Constant<value_floats=[1.0, 2.0]>() }", ["Identity"]),
    ],
)
def test_what_does_nothing_goes(same, text_model, ops, body, left):
    assert ops(same(text_model(body))) == left


@pytest.mark.parametrize(
    ("op", "constants", "left"),
    [
        ("Reshape(x, c0)", [[2, 3]], []),
        ("Reshape(x, c0)", [[3, 2]], ["Reshape"]),
        ("Expand(x, c0)", [[1, 1]], []),
        ("Expand(x, c0)", [[4, 1, 1]], ["Expand"]),
        ("Tile(x, c0)", [[1, 1]], []),
        ("Pad(x, c0)", [[0, 0, 0, 0]], []),
        ("Pad(x, c0)", [[0, 1, 0, -1]], ["Pad"]),
        ("Slice(x, c0, c1)", [[0, 0], [99, 99]], []),
        ("Slice(x, c0, c1, c2, c3)", [[-1], [-99], [1], [-1]], ["Slice"]),
    ],
)
def test_what_does_nothing_goes_by_its_constants(same, text_model, ops, op, constants, left):
    out = {"Reshape(x, c0)": "float[A, B]"}.get(
        op, "float[A, B]" if constants != [[4, 1, 1]] else "float[A, B, C]"
    )
    model = text_model(f"(float[2, 3] x) => ({out} y) {{ a = {op} y = Relu(a) }}")
    for index, value in enumerate(constants):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), f"c{index}"))
    assert ops(same(model)) == [*left, "Relu"]


def test_output_twice_and_output_that_is_an_input_or_a_weight(same, text_model):
    body = "(float[2] x) => (float[2] y, float[2] z, float[2] w) { y = Relu(x) z = Identity(x) }"
    model = text_model(body)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    assert [v.name for v in same(model).graph.outputs] == ["y", "z", "w"]


def test_float16_weights_and_int64_indices(same, text_model, ops):
    model = text_model("(int64[2, 3] i) => (float16[2, 3, 4] y) { a = Gather(w, i) y = Add(a, a) }")
    weights = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    assert ops(same(model, rtol=2e-3)) == ["Gather", "Add"]


def test_functions_of_the_model_are_inlined(same, text_model, ops):
    functions = """
        <opset_import: ["" : 17], domain: "d"> F (x) => (y) { a = Relu(x) y = d.G(a) }
        <opset_import: ["" : 17], domain: "d"> G (x) => (y) { y = Neg(x) }"""
    model = text_model("(float[2] x) => (float[2] y) { y = d.F(x) }", domains='"d" : 1', functions=functions)
    model.functions[0].opset_import.append(helper.make_opsetid("d", 1))
    assert ops(same(model)) == ["Relu", "Neg"]


def test_functions_of_sparsec_are_carried(same, text_model, ops):
    functions = """<opset_import: ["" : 20], domain: "ai.sparsec">
        ShiftedRelu (x, tau) => (y) { a = Sub(x, tau) y = Relu(a) }"""
    body = "(float[N, 4] x) => (float[N, 4] y) <float tau = {0.5}> { y = ai.sparsec.ShiftedRelu(x, tau) }"
    model = text_model(body, opset=20, domains='"ai.sparsec" : 1', functions=functions)
    result = same(model)
    assert ops(result) == ["ShiftedRelu"] and len(result.functions) == 1
    model.opset_import[0].version = 17  # the function is of opset 20 and stays; the model is converted
    assert ops(same(model)) == ["ShiftedRelu"]


def test_function_of_another_opset(refusal, text_model):
    functions = '<opset_import: ["" : 18], domain: "d"> F (x) => (y) { y = Relu(x) }'
    model = text_model("(float[2] x) => (float[2] y) { y = d.F(x) }", domains='"d" : 1', functions=functions)
    assert "function 'F' is of opset 18 of domain '', the model of 17" in refusal(model)


def test_contradictions_are_one_line(refusal, text_model):
    body = "(float[2, 3] a, float[4, 5] b) => (float[2, 5] y) { y = MatMul(a, b) }"
    assert "the model contradicts itself, by onnx's shape inference" in refusal(text_model(body))


def test_same_model_same_bytes(save, text_model):
    body = "(float[2, 6] x) => (float[2, 2] y) { a, b, c = Split<axis=1>(x) d = Add(a, b) y = Mul(d, c) }"
    path = save(text_model(body))
    first, second = (ir.to_proto(ingest(path)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_model_that_does_not_settle(refusal, text_model, monkeypatch):
    monkeypatch.setattr("sparsec.compiler.ingest.form.MAX_ROUNDS", 1)
    text = refusal(text_model("(float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert "the model does not settle in 1 rounds of constant folding" in text


def test_what_the_reader_trips_over_is_one_line(refusal, text_model, monkeypatch):
    def broken(proto):
        raise ValueError("line one\nline two")

    monkeypatch.setattr("onnx_ir.serde.deserialize_model", broken)
    text = refusal(text_model("(float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert "is not a sound ONNX model: line one line two" in text
