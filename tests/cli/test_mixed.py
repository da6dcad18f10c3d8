"""``sparsec compile --precision bf16,int8``: one artifact under a budget, and what is refused."""

import numpy as np
import onnx
import pytest

from sparsec.compiler import request
from sparsec.compiler.cli import options
from sparsec.compiler.cli.compile import plan_table, summary
from sparsec.compiler.errors import CompileError
from sparsec.compiler.request import CompileRequest, cpu_levels
from sparsec.runtime import load

TEXT = """(float[1,3,9,9] x) => (float[1,10] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, c1) b = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(b, c2) d = Add(c, b)
    e = Relu(d) g = GlobalAveragePool(e) h = Flatten(g) y = Gemm<transB = 1>(h, w, bias)
}"""
BUDGET = 0.05


@pytest.fixture(scope="module")
def given(tmp_path_factory, ort_run):
    """The path of a network, and of data with the labels that it gives itself."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(7)
    shapes = {"c1": (16, 3, 3, 3), "c2": (16, 16, 3, 3), "w": (10, 16), "bias": (10,)}
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {TEXT}')
    for name, shape in shapes.items():
        array = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = node.output[0]
    path, data = folder / "net.onnx", folder / "data.npz"
    onnx.save(proto, path)
    x = rng.standard_normal((16, 3, 9, 9)).astype(np.float32)
    y = np.concatenate([ort_run(path, {"x": row[None]})["y"] for row in x])
    np.savez(data, x=x, labels=y.argmax(axis=1))
    return path, data, x, y


@pytest.fixture(scope="module")
def report(given, tmp_path_factory):
    from sparsec.compiler.pipeline import compile_model

    out = tmp_path_factory.mktemp("out") / "net.sparsec"
    return compile_model(
        CompileRequest(
            str(given[0]),
            str(out),
            "native",
            precision="bf16,int8",
            patterns=("2:4x16",),
            max_error=BUDGET,
            max_drop=0.3,
            calib=str(given[1]),
        )
    )


def test_the_artifact_keeps_the_budget_on_held_out_samples(report, given):
    plan, (_, _, x, y) = report["plan"], given
    assert plan["held_out"]["error"] <= BUDGET and plan["held_out"]["drop"] <= 0.3
    with load(report["out"], threads=1) as model:
        found = np.concatenate([model({"x": row[None]})["y"] for row in x[12:]])
    error = np.abs(found - y[12:]).max() / np.abs(y[12:]).max()
    assert error == pytest.approx(plan["held_out"]["error"], rel=1e-3, abs=1e-6)
    assert report["receipt"]["max_error"]["y"]["within"] and "float32" in report["receipt"]


def test_layers_have_the_precision_that_the_plan_says(report):
    chosen = {layer["node"]: layer["precision"] for layer in report["plan"]["layers"]}
    assert set(chosen) == {"a", "c", "y"}
    made = {layer["name"]: layer.get("precision", "float32") for layer in report["layers"]}
    spelled = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
    for name, precision in chosen.items():
        assert made[name].removesuffix(" weights") == spelled[precision]
    told = {f["node"]: f for f in report["findings"] if f["pass_name"] == "allocate"}
    assert set(told) >= set(chosen) and all(f["reason"] for f in told.values())


def test_the_closing_tables(report):
    lines = summary(report)
    head = plan_table(report["plan"])
    assert lines[: len(head)] == head and head[0].split()[:3] == ["layer", "pattern", "precision"]
    assert any(line.startswith("int8 throughout") for line in head)
    assert any(line.startswith("as chosen") and "0.0" in line for line in head)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--precision", "bf16,int8"), 1, "--precision bf16,int8 needs --calib DATA.npz"),
        (("--precision", "bf16", "--max-error", "0.1"), 1, "a budget needs --calib DATA.npz"),
        (("--precision", "bf16,fp8"), 2, "of several each layer gets one, or stays fp32; write bf16,int8"),
        (("--precision", "int8,int8"), 2, "write bf16,int8"),
        (("--max-error", "0.1"), 1, "--precision bf16,int8 or one of them is required, found fp32"),
        (("--pattern", "2:4"), 1, "`sparsec sparsify --pattern` prunes alone"),
        (
            ("--precision", "bf16,int8", "--target", "cuda", "--calib", "DATA"),
            1,
            "--precision bf16,int8 is for CPUs",
        ),
        (
            ("--precision", "bf16", "--max-error", "0.1", "--target", "cuda", "--calib", "DATA"),
            1,
            "--pattern and budgets is for CPUs",
        ),
        (
            ("--precision", "bf16,int8", "--variants", "2:4,1:4", "--calib", "DATA"),
            1,
            "--variants does not go with a choice of precisions",
        ),
        (
            ("--precision", "int8", "--max-drop", "0", "--calib", "UNLABELLED"),
            1,
            "--max-drop needs --metric FILE.py:NAME or an array `labels`",
        ),
        (
            ("--precision", "int8", "--max-error", "0", "--calib", "DATA", "--target", "arm"),
            1,
            "this machine cannot run 'arm'",
        ),
    ],
)
def test_what_is_refused(call, given, tmp_path, arguments, status, words):
    model, data, x, _ = given
    np.savez(tmp_path / "unlabelled.npz", x=x)
    files = {"DATA": data, "UNLABELLED": tmp_path / "unlabelled.npz"}
    out = tmp_path / "out.sparsec"
    result = call("compile", model, "-o", out, *(files.get(a, a) for a in arguments))
    assert result.exit_code == status and words in result.stderr
    assert not out.exists()


def test_the_spellings_are_those_of_requests():
    assert options.PRECISIONS == request.PRECISIONS
    assert options.Precision.mixed == ",".join(request.MIXED)


def test_a_request_is_settled_once():
    asked = CompileRequest("m", "o", precision="bf16,int8", patterns=("2:4",), calib="d.npz")
    assert asked.allocates and not asked.settled
    assert CompileRequest.from_json(asked.to_json()) == asked
    made = CompileRequest("m", "o", precision="bf16,int8", bfloat16=("a",))
    assert not made.allocates and made.floats == "bf16" and CompileRequest.from_json(made.to_json()) == made
    assert CompileRequest("m", "o", precision="int8", bfloat16=()).floats == "fp32"
    with pytest.raises(CompileError, match="or 'bf16,int8', of which each layer gets one or stays fp32"):
        CompileRequest("m", "o", precision="fp32,int8", calib="d.npz")


def test_levels_are_those_of_both():
    assert cpu_levels("x86", "bf16,int8") == ("v4bf16", "v4vnni", "v4", "v3vnni", "v3")
