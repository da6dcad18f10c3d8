"""--precision bf16: which layers, which values between them, what the artifact says, and the numbers."""

import numpy as np
import onnx
import pytest

from sparsec.compiler import reference
from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.cli.explain import analyse
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import ingest
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.precision import assign, narrow, told
from sparsec.compiler.request import CompileRequest, cpu_levels
from sparsec.compiler.to_relax.attention import attentions
from sparsec.runtime import cpu, load

RNG = np.random.default_rng(13)
#: Two convolutions around a residual, a normaliser, a layer behind it and a last one.
TEXT = """(float[1,16,9,9] x) => (y, early) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1) b = Relu(a)
    c = Conv(b, w2) d = Add(c, b) e = Relu(d) f = Conv(e, w3)
    g = Reshape(f, shape) h = LayerNormalization(g, scale) i = MatMul(h, w4) j = Tanh(i)
    y = MatMul(j, w5) early = ReduceSum(j, last)
}"""
CONSTANTS = {
    "w1": RNG.standard_normal((32, 16, 3, 3)),
    "w2": RNG.standard_normal((32, 32, 1, 1)),
    "w3": RNG.standard_normal((16, 32, 1, 1)),
    "w4": RNG.standard_normal((81, 40)) / 9,
    "w5": RNG.standard_normal((40, 7)),
    "scale": np.ones(81),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {_typed()}')
    values = {name: array.astype(np.float32) for name, array in CONSTANTS.items()}
    values |= {"shape": np.array([1, 16, 81]), "last": np.array([-1])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in values.items())
    path = tmp_path_factory.mktemp("precision") / "net.onnx"
    path.write_bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())
    return path


def _typed() -> str:
    return TEXT.replace("(y, early)", "(float[1,16,7] y, float[1,16,1] early)")


@pytest.fixture(scope="module")
def report(network, tmp_path_factory):
    """The report of a compilation for every level that bf16 adds to x86."""
    out = tmp_path_factory.mktemp("artifact") / "net.sparsec"
    return compile_model(CompileRequest(str(network), str(out), "x86", precision="bf16"))


def marked(network, precision="bf16", levels=("v4bf16",)):
    model = ingest(network)
    channels_last(model)
    findings = {f.node: f for f in assign(model, precision, levels)}
    return model, [findings[node.name] for node in model.graph if node.name in findings]


def test_layers_get_their_precision_with_a_reason(network):
    found = [(f.outcome, f.after) for f in marked(network)[1]]
    assert found == [("applied", "bfloat16")] * 4 + [("declined", "float32")]
    assert "last layer" in marked(network)[1][-1].reason


def test_a_level_without_products_keeps_float32(network):
    findings = marked(network, levels=("v3",))[1]
    assert {f.after for f in findings} == {"float32"}
    assert findings[0].reason == "level v3 has no products of bfloat16, and 81 rows share each weight"


def test_few_rows_take_narrow_weights_everywhere(tmp_path, single_op):
    proto = single_op("MatMul", {"x": np.zeros((2, 8), "f"), "w": np.ones((8, 4), "f")}, constants=("w",))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert [f.after for f in marked(path, levels=("neon",))[1]] == ["bfloat16 weights"]


def test_without_the_option_nothing_is_marked(network):
    model, findings = marked(network, precision="fp32")
    assert not findings and not narrow(model, {})
    assert not any(node.metadata_props for node in model.graph if node.op_type == "MatMul")


def test_values_between_layers_are_narrow(network):
    model, _ = marked(network)
    # Both Relus: one is read by a layer and the residual, the other by a layer alone.  The rest goes to a
    # normaliser, a sum, a layer of float32.
    assert sorted(v.producer().op_type for v in narrow(model, {})) == ["Relu", "Relu"]


ATTENTION = """(float[1,9,32] x) => (RESULTS) {
    q0 = MatMul(x, w) q1 = Add(q0, b) q2 = Reshape(q1, heads) q = Transpose<perm = [0, 2, 1, 3]>(q2)
    k1 = MatMul(x, wk) k2 = Reshape(k1, heads) k = Transpose<perm = [0, 2, 3, 1]>(k2)
    v1 = MatMul(x, wv) v2 = Reshape(v1, heads) v = Transpose<perm = [0, 2, 1, 3]>(v2)
    q3 = Mul(q, scale) s = MatMul(q3, k) p = Softmax(s) o = MatMul(p, v)
    o1 = Transpose<perm = [0, 2, 1, 3]>(o) o2 = Reshape(o1, flat) o3 = MatMul(o2, w)
    n = LayerNormalization(o3, ones) y = MatMul(n, w)
}"""


def attention(folder, results="float[1,9,32] y", swap=("", "")):
    text = ATTENTION.replace("RESULTS", results).replace(*swap)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    rng = np.random.default_rng(17)
    values = {name: rng.standard_normal((32, 32)) for name in ("w", "wk", "wv")}
    values |= {"b": rng.standard_normal(32), "ones": np.ones(32)}
    values = {name: array.astype("f") for name, array in values.items()} | {"scale": np.float32(0.25)}
    values |= {"heads": np.array([1, 9, 2, 16]), "flat": np.array([1, 9, 32])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in values.items())
    path = folder / "attention.onnx"
    path.write_bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())
    return path


def test_attention_takes_what_lies_behind_views(tmp_path):
    model, _ = marked(attention(tmp_path))
    attended = attentions(model)
    values = narrow(model, {}, attended=attended)
    assert {v.name for v in values} == {"q1", "k1", "v1"}
    assert [(f.outcome, f.after) for f in told(model, {}, attended, values)] == [("applied", "bfloat16")]


def test_attention_whose_keys_are_an_output_stays_float32(tmp_path):
    model, _ = marked(attention(tmp_path, "float[1,9,32] y, float[1,2,16,9] k"))
    attended = attentions(model)
    assert not narrow(model, {}, attended=attended)
    (finding,) = told(model, {}, attended, frozenset())
    assert finding.outcome == "declined"
    assert finding.reason == "attention: something that needs more reads 'k1', too"


def test_attention_of_an_input_stays_float32(tmp_path):
    path = attention(tmp_path, swap=("v1 = MatMul(x, wv) v2 = Reshape(v1, heads)", "v2 = Reshape(x, heads)"))
    model, _ = marked(path)
    attended = attentions(model)
    (finding,) = told(model, {}, attended, narrow(model, {}, attended=attended))
    assert finding.reason == "attention: no layer makes 'x'"


@pytest.mark.parametrize(
    ("target", "levels"),
    [
        pytest.param("x86", ["v4bf16", "v4", "v3"], id="x86"),
        pytest.param("arm", ["neonbf16", "neon"], id="arm", marks=pytest.mark.qemu("aarch64")),
    ],
)
def test_attention_computes_on_every_level(target, levels, tmp_path):
    path = attention(tmp_path)
    out = tmp_path / "attention.sparsec"
    report = compile_model(CompileRequest(str(path), str(out), target, precision="bf16"))
    assert report["levels"] == levels and report["receipt"]["levels"]
    assert 1e-4 < report["receipt"]["max_error"]["y"]["max_rel_to_scale"] < 2e-2


def test_the_artifact_says_what_it_is(report):
    assert report["levels"] == ["v4bf16", "v4", "v3"] and report["precision"] == "bf16"
    assert [layer["precision"] for layer in report["layers"]] == ["bfloat16"] * 4 + ["float32"]
    receipt = report["receipt"]
    assert receipt["tolerance"]["relative"] == reference.TOLERANCE["bf16"]
    errors = [found["max_rel_to_scale"] for found in receipt["max_error"].values()]
    assert all(1e-5 < error < 2e-2 for error in errors)  # rounded, and not much more


def test_rounding_is_fused_into_the_layer_before(report):
    """Left alone: the input's, with the transpose, and the normaliser's."""
    assert report["steps"] == 10


def test_halves_the_weights(report):
    layers = report["layers"]
    assert all(2 * layer["packed_bytes"] <= 1.3 * layer["dense_bytes"] for layer in layers[:3])


def test_every_level_computes_the_same(report):
    errors = report["receipt"]["max_error"]
    assert report["receipt"]["levels"] and set(errors) == {"y", "early"}
    with load(report["out"]) as model:
        assert model.manifest["precision"] == "bf16"
        assert model.level in report["levels"]


def test_close_to_a_reference_with_rounded_operands(network, report):
    """ONNX Runtime on operands rounded by Cast; only the last layer, float32 here, is rounded there."""
    x = np.random.default_rng(3).standard_normal((1, 16, 9, 9)).astype("f")
    want = reference.run_reference(reference.rounded(str(network)), {"x": x})["early"]
    plain = reference.run_reference(str(network), {"x": x})["early"]
    with load(report["out"]) as model:
        got = model({"x": x})["early"]
    assert np.abs(got - plain).max() > 5e-4
    # A value on the border between two bfloat16 may fall either way.
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.7 * np.sqrt(np.mean((got - plain) ** 2))


def test_rounded_rounds_what_is_multiplied(network):
    ops = [node.op_type for node in onnx.load_from_string(reference.rounded(str(network))).graph.node]
    assert ops.count("Cast") == 4 * 5


def test_integers_may_differ_at_a_lower_precision():
    a, b = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])
    assert not reference.compare(a, b).within
    difference = reference.compare(a, b, precision="bf16")
    assert difference.within and difference.max_abs == 0.25


def test_targets_and_their_levels():
    assert cpu_levels("x86", "bf16") == ("v4bf16", "v4", "v3")
    assert cpu_levels("x86", "int8") == ("v4vnni", "v4", "v3vnni", "v3")
    assert cpu_levels("x86:v3", "bf16") == ("v3",) and cpu_levels("riscv64", "bf16") == ("rv64gc",)
    assert cpu_levels("native", "fp32") == cpu_levels("native")
    with pytest.raises(CompileError, match="precision must be one of fp32, tf32, fp16, bf16, .*found 'fp8'"):
        CompileRequest("m.onnx", "m.sparsec", precision="fp8")
    with pytest.raises(CompileError, match="--precision fp16 is for GPUs; choose of fp32, bf16, .*for 'x86'"):
        CompileRequest("m.onnx", "m.sparsec", precision="fp16")


def test_native_is_the_best_level_of_the_precision(monkeypatch):
    monkeypatch.setattr(cpu, "levels", lambda: ("v4bf16", "v4vnni", "v4", "v3"))
    found = [cpu_levels("native", precision) for precision in ("fp32", "bf16", "int8")]
    assert found == [("v4",), ("v4bf16",), ("v4vnni",)]


def test_explain_tells_the_precision(network):
    request = CompileRequest(str(network), "", "x86:v4", precision="bf16").to_json()
    found = [f for f in analyse(request, lambda line: None)["findings"] if f["pass_name"] == "precision"]
    assert [f["after"] for f in found] == ["bfloat16"] * 4 + ["float32"]
