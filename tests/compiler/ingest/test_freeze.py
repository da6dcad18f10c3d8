"""Sizes: given, declared, assumed for a leading batch, or asked for with the option to type."""

import json

import pytest

from sparsec.compiler.ingest import SOURCE_DIMS, ingest
from sparsec.compiler.ingest.freeze import solve, symbols

TWO = "(float[N, T] a, float[N, T] b) => (float[N, T] y) { y = Add(a, b) }"


def test_shape_freezes_one_input_and_binds_its_names(same, text_model):
    model = same(text_model(TWO), shapes={"a": (3, 5)})
    assert [tuple(v.shape) for v in model.graph.inputs] == [(3, 5), (3, 5)]
    assert tuple(model.graph.outputs[0].shape) == (3, 5)


def test_dims_by_name_and_a_batch_that_is_assumed(same, text_model):
    log = []
    model = same(text_model(TWO), dims={"T": 7}, log=log)
    assert tuple(model.graph.outputs[0].shape) == (1, 7)
    assert log == ["input 'a': axis 0 is 'N'; assuming N=1 (--dim N=N sets it)"]


def test_source_dims_are_kept(save, text_model):
    model = ingest(
        save(text_model("(float[N, 3, ?] x) => (float[N, 3, ?] y) { y = Relu(x) }")), {"x": (1, 3, 4)}
    )
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert json.loads(value.metadata_props[SOURCE_DIMS]) == ["N", 3, None]


def test_stale_shapes_of_computed_values_are_dropped(same, text_model):
    body = "(float[N, 4] x) => (float[1, 4] y) <float[1, 4] a> { a = Relu(x) y = Neg(a) }"
    model = text_model(body)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    assert tuple(same(model, dims={"N": 3}).graph.outputs[0].shape) == (3, 4)


def test_formulas_follow_from_their_names(same, text_model):
    model = text_model("(float[B, T] x, float[B, U] m) => (float[B, V] y) { y = Concat<axis=1>(x, m) }")
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "2*T + 1"
    assert tuple(same(model, dims={"T": 3}).graph.outputs[0].shape) == (1, 10)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_mean_unknown(save, text_model, size):
    model = text_model("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    log = []
    assert tuple(ingest(save(model), log=log.append).graph.outputs[0].shape) == (1, 4)
    assert log == ["input 'x': axis 0 has no size; assuming 1 (--shape x=... sets it)"]


def test_scalar_input(same, text_model):
    assert tuple(same(text_model("(float x) => (float y) { y = Relu(x) }")).graph.inputs[0].shape) == ()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {},
            "sizes are missing: input 'a' axis 1 is 'T': give --dim T=128; input 'b' axis 1 is 'T'",
        ),
        ({"shapes": {"aa": (1, 2)}}, "no input of that name; its inputs: 'a', 'b'. Did you mean 'a'?"),
        ({"shapes": {"a": (1, 2, 3)}}, "--shape a: 3 sizes were given, the model declares 2: NxT"),
        ({"shapes": {"a": (1, 0)}}, "--shape a: sizes must be whole numbers from 1 to"),
        ({"shapes": {"a": (1, 2.5)}}, "--shape a: sizes must be whole numbers"),
        (
            {"shapes": {"a": (1, 2), "b": (1, 3)}},
            "axis 1 is dim 'T', which is 2 elsewhere, not 3; give it one size",
        ),
        ({"shapes": {"a": (1, 2)}, "dims": {"T": 3}}, "axis 1 is dim 'T', which is 3 elsewhere, not 2"),
        (
            {"dims": {"TT": 3}},
            "--dim TT: the inputs have no symbolic dim of that name; known: 'N', 'T'. Did you mean 'T'?",
        ),
        ({"dims": {"T": 0}}, "--dim T: the size must be a whole number from 1 to"),
        ({"dims": {"T": True}}, "--dim T: the size must be a whole number from 1 to"),
    ],
)
def test_refused(refusal, text_model, options, text):
    assert text in refusal(text_model(TWO), **options)


def test_fixed_axis_cannot_be_changed(refusal, text_model):
    model = text_model("(float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")
    assert "axis 1 is fixed to 3 by the model (2x3), not 4" in refusal(model, shapes={"x": (2, 4)})
    assert "all their sizes are fixed" in refusal(model, dims={"N": 1})


def test_anonymous_axis_and_no_shape_at_all(refusal, text_model):
    model = text_model("(float[N, ?, 3] x) => (float[N, ?, 3] y) { y = Relu(x) }")
    assert "input 'x' axis 1 has no size: give --shape x=1x128x3" in refusal(model)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert "input 'x' declares no shape at all: give --shape x=1x3x224x224" in refusal(model)


def test_a_leading_name_that_also_occurs_elsewhere_is_asked_for(refusal, text_model):
    body = "(float[T, N] x, float[B, T] m) => (float[B, N] y) { y = MatMul(m, x) }"
    assert "input 'x' axis 0 is 'T': give --dim T=128" in refusal(text_model(body), dims={"N": 2})


def test_formula_conflicts_and_formulas_below_one(refusal, text_model):
    model = text_model("(float[B, T] x, float[B, U] m) => (float[B, V] y) { y = Concat<axis=1>(x, m) }")
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "T - 4"
    assert "input 'm' axis 1 is 'T - 4', that would be -1: give a size >= 1" in refusal(model, dims={"T": 3})
    assert "axis 1 is 'T - 4', that is 2, not 3" in refusal(model, dims={"T": 6}, shapes={"m": (1, 3)})


def test_symbols_and_solve():
    assert symbols("2*seq + past//2") == {"seq", "past"}
    assert symbols("input.1_dynamic_axes_1") == {"input.1_dynamic_axes_1"}
    assert symbols("__import__('os')") == {"__import__('os')"}
    assert solve(["N", 3, "N*(M - 1)"], {"N": 2, "M": 5}) == [2, 3, 8]
    assert solve(["N", "N // Z"], {"N": 2, "Z": 0}) is None
    assert solve(None, {}) is None and solve(["M"], {}) is None
