"""One file with a network in several patterns: right in each, what they share stored once, chosen by name."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec.compiler.cli.compile import summary
from sparsec.compiler.errors import CompileError
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest
from sparsec.passes import PassError
from sparsec.runtime import InputError

RNG = np.random.default_rng(5)
DENSE = RNG.standard_normal((64, 48)).astype(np.float32)
LARGE = RNG.standard_normal((48, 4096)).astype(np.float32)  # what all variants share


def largest(weight: np.ndarray, n: int, m: int) -> np.ndarray:
    """Of each m inputs (rows) the n largest."""
    groups = np.abs(weight).reshape(-1, m, weight.shape[1])
    rank = (-groups).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return np.where((rank < n).reshape(weight.shape), weight, np.float32(0))


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """x @ (2:4 weight) @ (dense weight): the path of the model and of its artifact, and the report."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="sparse"),
        helper.make_node("MatMul", ["h", "large"], ["y"], name="dense"),
    ]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [16, 64]), ("y", [16, 4096]))
    ]
    weights = [numpy_helper.from_array(largest(DENSE, 2, 4), "w"), numpy_helper.from_array(LARGE, "large")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    path = tmp_path_factory.mktemp("nested") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    out = path.with_suffix(".sparsec")
    variants = ("2:4", "1:4", "1:8x16")
    report = compile_model(
        CompileRequest(str(path), str(out), target="native", variants=variants, sparsity="require")
    )
    return path, out, report


@pytest.mark.parametrize(("variant", "n", "m"), [(None, 2, 4), ("2:4", 2, 4), ("1:4", 1, 4)])
def test_each_variant_computes_its_own_weights(nested, variant, n, m):
    x = RNG.standard_normal((16, 64)).astype(np.float32)
    with sparsec.load(nested[1], variant=variant) as model:
        assert model.variant == (variant or "2:4") and model.variants == ("2:4", "1:4", "1:8x16")
        y = model(x)["y"]
        receipt, layers = model.manifest["receipt"], model.manifest["layers"]
    wanted = x.astype(np.float64) @ largest(DENSE, n, m) @ LARGE
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert receipt["max_error"]["y"]["max_rel_to_scale"] < 1e-5
    assert layers[0]["pattern"] == f"{n}:{m}" and layers[1]["pattern"] == "dense"


def test_what_they_share_is_stored_once(nested):
    _, out, report = nested
    weights = [made["weights_bytes"] for made in report["variants"].values()]
    assert LARGE.nbytes < max(weights) < 1.1 * LARGE.nbytes
    assert out.stat().st_size < 1.5 * LARGE.nbytes


def test_the_summary_tells_the_error_of_each(nested):
    lines = summary(nested[2])
    first, second = lines.index("variant  1:4"), lines.index("variant  1:8x16")
    assert all(lines[i + 1].startswith("error    ") for i in (first, second)) and first < second


def test_another_variant_is_refused_with_those_there_are(nested):
    with pytest.raises(InputError, match="has no variant '3:4'; it has 2:4, 1:4, 1:8x16$"):
        sparsec.load(nested[1], variant="3:4")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variants": ("2:4",)}, CompileError, "two patterns or more are required, each once; found 2:4"),
        ({"variants": ("2:4", "2:4")}, CompileError, "each once; found 2:4, 2:4"),
        ({"variants": ("2:4", "half")}, PassError, "required n:m or n:mxblock, found 'half'"),
        (
            {"variants": ("2:4", "1:4"), "choices": "c.json"},
            CompileError,
            "--variants with --choices: one network",
        ),
    ],
)
def test_wrong_usage(options, error, message):
    with pytest.raises(error, match=message):
        CompileRequest("m.onnx", "m.sparsec", **options)


def test_a_dense_model_has_nothing_to_tighten(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [3, 64]), ("y", [3, 48]))
    ]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(DENSE, "w")])
    path, out = tmp_path / "m.onnx", tmp_path / "m.sparsec"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(
        CompileError, match="no layer of the model has a pattern that could be tightened; prune"
    ):
        compile_model(
            CompileRequest(str(path), str(out), target="native", variants=("2:4", "1:4"), verify=False)
        )
    assert not out.exists()
