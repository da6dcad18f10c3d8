"""The table of operators against TVM's own, against onnx's definitions, and the page that shows it."""

from pathlib import Path

import onnx
import pytest

from sparsec.compiler.ingest import OPSET, support
from sparsec.compiler.ingest.forms import FORMS
from sparsec.compiler.ingest.table import EXPANDED, IMPORTED, OWN, REFUSED, RESOLVED

ROOT = Path(__file__).resolve().parents[3]


def schema(name: str, version: int):
    try:
        return onnx.defs.get_schema(name, version, "")
    except onnx.defs.SchemaError:
        return None


def test_table_is_sorted_and_has_no_operator_twice():
    for names in (IMPORTED, OWN, EXPANDED, tuple(RESOLVED), tuple(REFUSED)):
        assert list(names) == sorted(names)
    everything = [*IMPORTED, *OWN, *EXPANDED, *RESOLVED, *REFUSED]
    assert len(everything) == len(set(everything))


def test_table_is_the_importers():
    from tvm.relax.frontend.onnx import onnx_frontend

    known = set(onnx_frontend._get_convert_map())
    # A form of com.microsoft's Attention and the newest normalisation: both are expanded before it.
    expanded = {"Attention", "RMSNormalization"}
    ours = set(IMPORTED) | set(REFUSED) | (set(RESOLVED) - {"If", "Loop", "Scan"}) | expanded
    assert known == ours


def test_expanded_operators_have_a_function_body():
    for name in EXPANDED:
        found = schema(name, OPSET) or schema(name, 26)
        assert found.has_function or found.has_context_dependent_function, name


def test_imported_operators_are_standard():
    for name in (*IMPORTED, *OWN):
        assert schema(name, OPSET) is not None, name


def test_forms_are_of_imported_operators():
    assert {op_type for op_type, _, _ in FORMS} <= set(IMPORTED) | set(OWN)


def test_page_is_current():
    page = ROOT / "docs" / "onnx-ops.md"
    assert page.read_text() == support.page(), (
        "run: python -m sparsec.compiler.ingest.support > docs/onnx-ops.md"
    )


def test_everything_is_listed_at_once(refusal, text_model):
    body = """(float[2, 3] x, string[2] names) => (int64[A, B] y, float[2, 3] z, float[2, 3] w) {
        y = NonZero(x) z = d.Unknown(x) w = com.microsoft.Unknown(x) }"""
    text = refusal(text_model(body, domains='"d" : 3, "com.microsoft" : 1'))
    assert text.startswith("4 things in the model cannot be compiled: input 'names' has element type STRING")
    assert "NonZero 'NonZero_0' (ai.onnx opset 20; FLOAT): the shape of its output depends on data" in text
    assert "Unknown 'Unknown_1' (d opset 3; FLOAT): sparsec has no conversion for it" in text
    assert "Unknown 'Unknown_2' (com.microsoft opset 1; FLOAT): sparsec has no conversion for it" in text


@pytest.mark.parametrize("op", ["Gelu", "Softmax", "LayerNormalization", "Conv"])
def test_a_standard_name_in_another_domain_is_another_operator(refusal, text_model, op):
    text = refusal(text_model(f"(float[2, 3] x) => (float[2, 3] y) {{ y = d.{op}(x) }}", domains='"d" : 1'))
    assert f"{op} '{op}_0' (d opset 1; FLOAT): sparsec has no conversion for it" in text


def test_values_without_static_shape_or_type(refusal, text_model):
    body = "(float[2, 3] x, int64[2] s) => (float[A, B] y) { y = Reshape(x, s) }"
    text = refusal(text_model(body))
    assert "output 'y' has shape [" in text and "does not follow from the sizes of the inputs" in text
    model = text_model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    model.graph.input[0].type.Clear()
    assert "input 'x' has no type; export the model again" in refusal(model)


def test_inputs_that_are_no_tensors(refusal, text_model):
    body = "(seq(float[2]) s) => (float[2] y) { y = ConcatFromSequence<axis=0>(s) }"
    assert "input 's' is a sequence, only tensors are supported" in refusal(text_model(body), shapes={})


def test_complex_and_small_types(refusal, text_model):
    text = refusal(text_model("(float8e4m3fn[2] x) => (float[2] y) { y = Cast<to=1>(x) }", opset=19))
    assert "input 'x' has element type FLOAT8E4M3FN, supported are FLOAT, DOUBLE" in text
