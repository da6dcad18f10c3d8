"""What layers may become, and which of them become it together."""

import pytest

from sparsec.compiler.mixed.forms import PLAIN, Form, find_units
from sparsec.passes.nm_choice import Choice
from sparsec.passes.nm_pattern import NM

HALF = NM(2, 4, 16)


@pytest.fixture(scope="module")
def found(transformer):
    return find_units(transformer[0], ["bf16", "int8"], [HALF], Choice())


def test_layers_that_read_one_value_are_a_unit(found):
    units, forms, refused = found
    assert [unit.names for unit in units] == [["q0", "k1", "v1"], ["o3"], ["m"], ["y"]]
    assert not refused
    every = [Form(precision, pattern) for precision in ("fp32", "bf16", "int8") for pattern in (None, HALF)]
    assert forms["m"] == every and every[0] == PLAIN
    assert [str(form) for form in every] == [
        "fp32",
        "2:4x16 fp32",
        "bf16",
        "2:4x16 bf16",
        "int8",
        "2:4x16 int8",
    ]


def test_a_unit_takes_a_form_as_far_as_its_layers_can(found):
    units, forms, _ = found
    forms = forms | {"k1": [PLAIN, Form("bf16"), Form("fp32", HALF)], "v1": [PLAIN]}
    members = units[0].members(Form("int8", HALF), forms)
    assert members == {"q0": Form("int8", HALF), "k1": Form("fp32", HALF), "v1": PLAIN}
    assert units[0].members(Form("bf16", HALF), forms)["k1"] == Form("bf16")
    choices = list(units[0].choices(forms))
    assert choices[0] == (PLAIN, dict.fromkeys(units[0].names, PLAIN)) and len(choices) == 6
    alike = {name: [PLAIN, Form("bf16")] for name in forms}
    assert [form for form, _ in units[0].choices(alike)] == [PLAIN, Form("bf16")]


def test_a_pattern_needs_room_and_integers_a_kernel(convolutions):
    units, forms, refused = find_units(convolutions[0], ["int8"], [NM(2, 4, 32)], Choice())
    assert forms["a"] == [PLAIN, Form("int8")], "459 weights are too few to be pruned"
    assert {str(form.pattern) for form in forms["c"] if form.pattern} == {"2:4x17"} or forms["c"][1].pattern
    assert not refused


def test_why_a_layer_has_no_forms(network):
    text = """(float[4,32] x, float[32] s) => (float[4,32] y) {
        a = Gemm<alpha = 2.0>(x, wq) b = Gemm(a, wk, s) y = MatMul(b, wv)
    }"""
    from sparsec.compiler.ingest import ingest

    units, _, refused = find_units(ingest(network(text)[0]), ["int8"], [], Choice())
    assert [unit.names for unit in units] == [["y"]]
    assert "alpha = beta = 1" in refused["a"] and "a bias that is a constant" in refused["b"]
