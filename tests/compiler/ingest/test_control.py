"""Control flow that static shapes decide disappears; the rest is refused."""

import numpy as np
import pytest
from onnx import numpy_helper

BRANCHES = """<
    then_branch = t () => (float[2] p) { p = Relu(x) },
    else_branch = e () => (float[2] q) { q = Neg(x) }>"""


@pytest.mark.parametrize(("condition", "left"), [(True, ["Relu"]), (False, ["Neg"])])
def test_if_with_a_constant(same, text_model, ops, condition, left):
    model = text_model(f"(float[2] x) => (float[2] y) {{ y = If(c) {BRANCHES} }}")
    model.graph.initializer.append(numpy_helper.from_array(np.array(condition), "c"))
    assert ops(same(model)) == left


def test_if_on_a_shape(same, text_model, ops):
    body = f"""(float[N] x) => (float[N] y) {{
        s = Shape(x) z = Constant<value_ints=[2]>() same = Equal(s, z) c = Squeeze(same)
        y = If(c) {BRANCHES} }}"""
    model = text_model(body.replace("float[2]", "float[N]"))
    assert ops(same(model, dims={"N": 2})) == ["Relu"]
    assert ops(same(model, dims={"N": 3})) == ["Neg"]


def test_if_on_data_is_refused(refusal, text_model):
    body = f"(float[2] x, bool c) => (float[2] y) {{ y = If(c) {BRANCHES} }}"
    text = refusal(text_model(body))
    assert "If 'If_0' (ai.onnx opset 20; BOOL): supported only when the condition is a constant" in text


LOOP = """(float[2, 3] x) => (float[2, 3] y, float[K, 2, 3] rows) {
    y, rows = Loop(n, go, x) <
        body = b (int64 i, bool c, float[2, 3] s) => (bool d, float[2, 3] t, float[2, 3] r) {
        d = Identity(c) f = Cast<to=1>(i) a = Add(s, f) t = Mul(a, a) r = Neg(t) }> }"""


def loop(text_model, trips, body=LOOP):
    model = text_model(body)
    if trips is not None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(trips), "n"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
    return model


def test_loop_with_a_constant_trip_count(same, text_model, ops):
    left = ops(same(loop(text_model, 3), rtol=1e-4))
    assert "Loop" not in left and left.count("Neg") == 3 and left.count("Concat") == 1


def test_loop_of_too_many_copies_and_of_unknown_length(refusal, text_model):
    why = (
        "supported only when the trip count is a constant and the copies of its body have at most 4000 nodes"
    )
    assert why in refusal(loop(text_model, 100_000))
    assert why in refusal(loop(text_model, None, LOOP.replace("float[2, 3] x)", "float[2, 3] x, int64 n)")))


def test_loop_that_stops_on_data_is_refused(refusal, text_model):
    body = LOOP.replace(
        "d = Identity(c)", "m = ReduceMax<keepdims=0>(s) z = Constant<value_float=9.0>() d = Less(m, z)"
    )
    assert "Loop 'Loop_0'" in refusal(loop(text_model, 3, body))


def test_nested_loops(same, text_model, ops):
    body = """(float[2] x) => (float[2] y) {
        y = Loop(n, go, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
            d = Identity(c)
            t = Loop(n, go, s) <body = b2 (int64 j, bool c2, float[2] u) => (bool d2, float[2] v) {
                d2 = Identity(c2) w = Mul(u, x) v = Sin(w) }> }> }"""
    left = ops(same(loop(text_model, 2, body)))
    assert left.count("Sin") == 4 and set(left) == {"Sin", "Mul"}


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        ", scan_input_directions=[1]",
        ", scan_output_directions=[1]",
        ", scan_input_axes=[1], scan_output_axes=[1]",
    ],
)
def test_scan(same, text_model, ops, attributes):
    body = f"""(float[3] s0, float[3, 3] x) => (float[3] y, float[3, 3] rows) {{
        y, rows = Scan<num_scan_inputs=1{attributes},
            body = b (float[3] s, float[3] v) => (float[3] t, float[3] r) {{
            t = Add(s, v) r = Mul(t, v) }}>(s0, x) }}"""
    left = ops(same(text_model(body)))
    assert "Scan" not in left and left.count("Add") == 3


def test_scan_of_opset_8_is_refused(refusal, text_model):
    body = """(float[1, 3] s0, float[1, 3, 3] x) => (float[1, 3] y) {
        y = Scan<num_scan_inputs=1,
            body = b (float[3] s, float[3] v) => (float[3] t) { t = Add(s, v) }>("", s0, x) }"""
    model = text_model(body.replace('""', "x"), opset=8)
    model.graph.node[0].input[0] = ""
    assert "Scan 'Scan_0' is of opset 8, where it means something else" in refusal(model)


SPLIT = (
    "(float[7, 4] x) => (float[A, B] y) { s = SplitToSequence<axis=0>(x, n) r = SequenceErase(s, at) y = %s }"
)


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        ("SequenceAt(s, at)", ["Split"]),
        ("ConcatFromSequence<axis=0>(s)", ["Split", "Concat"]),
        ("ConcatFromSequence<axis=0>(r)", ["Split", "Concat"]),
    ],
)
def test_sequences_are_followed(same, text_model, ops, tail, left):
    model = text_model(SPLIT % tail)
    model.graph.initializer.append(numpy_helper.from_array(np.array(3), "n"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1), "at"))
    assert ops(same(model)) == left


def test_stack_insert_and_length(same, text_model, ops):
    body = """(float[2] x, float[2] z) => (float[2, 3] y, int64 n) {
        e = SequenceEmpty() a = SequenceInsert(e, x) b = SequenceInsert(a, z, zero)
        c = SequenceConstruct(x, z)
        d = SequenceInsert(b, x) y = ConcatFromSequence<axis=1, new_axis=1>(d) n = SequenceLength(c) }"""
    model = text_model(body)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    assert sorted(ops(same(model))) == ["Concat", "Identity", "Unsqueeze", "Unsqueeze"]


def test_split_without_sizes_and_without_dims(same, text_model, ops):
    body = """(float[3, 4] x) => (float[4] y) {
        s = SplitToSequence<keepdims=0>(x) y = SequenceAt(s, at) }"""
    model = text_model(body)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "at"))
    assert ops(same(model)) == ["Split", "Squeeze"]


def test_sequence_of_unknown_content_is_refused(refusal, text_model):
    body = "(float[4, 4] x, int64 n) => (float[A, B] y) { s = SplitToSequence(x, n) y = SequenceAt(s, n) }"
    text = refusal(text_model(body))
    assert "2 things in the model cannot be compiled" in text
    assert "SplitToSequence 'SplitToSequence_0'" in text and "SequenceAt 'SequenceAt_1'" in text
