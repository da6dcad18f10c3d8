"""What layers run as on GPUs: counted, or as a file of choices says."""

import json

import numpy as np
import pytest

from sparsec.compiler.cuda.forms import forms, why_dense
from sparsec.compiler.errors import CompileError
from sparsec.schedules.contraction import Gemm, conv
from sparsec.schedules.cuda.target import ARCHITECTURES
from sparsec.schedules.layout import Pattern

SPARSE = "nm{n=2,m=4,block=1,min_size=256}"


def fastest(spec) -> str:
    options = forms([(spec, np.zeros(1, np.float32))], None)
    return min(options, key=lambda form: form.seconds(spec, spec.n * spec.k, ARCHITECTURES["sm_90"])).kernel


@pytest.mark.parametrize(
    "rows, pattern, kernel",
    [
        (512, Pattern(2, 4, 32), "sparse"),
        (512, Pattern(2, 4, 4), "sparse"),
        (512, Pattern(2, 4, 1), "dense"),  # twice the time, by reading inputs one by one
        (512, Pattern(1, 8, 1), "sparse"),
        (1, Pattern(2, 4, 1), "sparse"),  # memory limits, and there is half to read
        (1, Pattern(3, 4, 1), "sparse"),
        (1, Pattern(4, 5, 1), "dense"),  # positions of 16 bits cost more than what is left out
        (64, Pattern(1, 10, 1, scattered=True), "dense"),
    ],
)
def test_the_fastest_form_by_counting(rows, pattern, kernel):
    assert fastest(Gemm((rows,), 4096, 4096, pattern)) == kernel


def test_what_has_no_kernel_says_why():
    assert (
        why_dense([(Gemm((64,), 64, 64, Pattern(1, 10, 1, scattered=True)), None)])
        == "its zeros lie anywhere"
    )
    image = conv(1, 9, 9, 24, 32, 3, 3, pattern=Pattern(2, 4, 1))
    assert why_dense([(image, None)]) == "24 input channels, which are no multiple of 16"


@pytest.fixture
def model(text_model, tmp_path):
    """A product of 20 rows and one of a single row, each of 24 inputs."""
    import onnx

    body = "(float[20,24] a, float[1,24] b) => (c, d) { c = MatMul(a, v) d = MatMul(b, w) }"
    made = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {body}')
    for name in "vw":
        weight = np.random.default_rng(0).standard_normal((24, 32), np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    for node, name in zip(made.graph.node, ("first", "second"), strict=True):
        node.name = name
    path = tmp_path / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(made), path)
    return path


def test_a_file_of_choices_is_replayed(compile_for_gpu, model, tmp_path):
    own = compile_for_gpu(model, passes=SPARSE).report
    assert own["choices"] == {"first": "dense", "second": "sparse"}
    file = tmp_path / "choices.json"
    file.write_text(json.dumps({"first": "dense", "second": "dense"}))
    report = compile_for_gpu(model, passes=SPARSE, choices=str(file)).report
    assert report["choices"] == {"first": "dense", "second": "dense"}
    assert [f["reason"] for f in report["findings"] if f["pass_name"] == "choose"] == [
        "as given by --choices"
    ] * 2
    file.write_text(json.dumps({"first": "sparse", "second": "dense"}))
    words = (
        "'first' cannot run sparse, as no kernel for GPUs skips its zeros: 24 input channels, which are no"
    )
    with pytest.raises(CompileError, match=words):
        compile_for_gpu(model, passes=SPARSE, choices=str(file), sparsity="auto")
