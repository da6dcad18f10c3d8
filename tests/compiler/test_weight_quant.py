"""Weights of 8 and 4 bits from a model to its artifact: rounded by the pass, or brought along."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sparsec import passes
from sparsec.compiler import precision
from sparsec.compiler.choices import choose
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import ingest
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest, cpu_levels
from sparsec.compiler.weight_quant import calibrated
from sparsec.passes.ops.weight_quant import dequantised
from sparsec.passes.quantize.groups import nearest
from sparsec.passes.weight_quant import restore
from sparsec.runtime import cpu, load

RNG = np.random.default_rng(5)
W1, W2 = (RNG.standard_normal(shape).astype("f") for shape in ((96, 80), (80, 70)))
BIAS = RNG.standard_normal(70).astype("f")


def model_of(text, opset=20, domains=(), **constants):
    head = ", ".join([f'"" : {opset}', *(f'"{d}" : 1' for d in domains)])
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{head}]> g {text}")
    for name, value in constants.items():
        tensor = value if isinstance(value, onnx.TensorProto) else onnx.numpy_helper.from_array(value)
        tensor.name = name
        proto.graph.initializer.append(tensor)
    return proto


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A MatMul, and a Gemm with factors behind it."""
    path = tmp_path_factory.mktemp("weight_quant") / "net.onnx"
    text = """(float[3,96] x) => (float[3,70] y) {
        a = MatMul(x, w1) b = Relu(a) y = Gemm<alpha = 0.5, beta = 2.0>(b, w2, c)
    }"""
    onnx.save(model_of(text, w1=W1, w2=W2, c=BIAS), path)
    return path


@pytest.fixture(scope="module")
def report(network, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("artifact") / "net.sparsec")
    return compile_model(CompileRequest(str(network), out, "native", precision="int4-weights"))


def reference_of(model: ir.Model, x):
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_the_artifact_says_what_it_is(report):
    assert [layer["precision"] for layer in report["layers"]] == ["int4 weights, groups of 32"] * 2
    assert report["precision"] == "int4-weights"
    assert report["receipt"]["max_error"]["y"]["max_rel_to_scale"] < 1e-4
    assert report["receipt"]["tolerance"]["relative"] == 1e-3
    assert "y" in report["receipt"]["float32"]  # how far the model in float32 is


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_levels_with_instructions_for_bytes(precision):
    assert cpu_levels("x86", precision) == ("v4vnni", "v4", "v3vnni", "v3")
    assert cpu_levels("native", precision)[0] == next(v for v in cpu.levels() if v != "v4bf16")


def test_computes_the_rounded_weights(network, report):
    x = np.random.default_rng(1).standard_normal((3, 96)).astype("f")
    (q1, s1, _), (q2, s2, _) = nearest(W1.T, 4, 32), nearest(0.5 * W2.T, 4, 32)
    one, two = ((q.astype("d") * np.repeat(s, 32, 1)[:, : q.shape[1]]) for q, s in ((q1, s1), (q2, s2)))
    want = np.maximum(x @ one.T, 0) @ two.T + 2 * BIAS
    with load(report["out"]) as model:
        got = model({"x": x})["y"]
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("bits,group,most", [(8, 64, 0.009), (4, 32, 0.11), (4, 16, 0.1)])
def test_scales_are_better_than_the_largest(bits, group, most):
    """Against scales that clip nothing, as round to nearest has them."""
    weight = np.random.default_rng(2).standard_normal((40, 100)).astype("f")
    q, scale, lost = nearest(weight, bits, group)
    assert q.min() >= -(1 << bits - 1) and q.max() < 1 << bits - 1
    found = q.astype("d") * np.repeat(scale, group, 1)[:, :100]
    relative = np.linalg.norm(found - weight) / np.linalg.norm(weight)
    assert relative == pytest.approx(lost, rel=1e-4) and lost < most
    padded = np.pad(weight, ((0, 0), (0, -100 % group))).reshape(40, -1, group)
    step = np.abs(padded).max(-1, keepdims=True) / ((1 << bits - 1) - 1)
    plain = np.linalg.norm(np.rint(padded / step) * step - padded) / np.linalg.norm(weight)
    assert lost < (0.96 if bits == 4 else 1.0) * plain


def test_zeros_stay_zeros_and_groups_of_zeros_have_no_scale():
    weight = np.random.default_rng(2).standard_normal((4, 64)).astype("f")
    weight[:, ::2] = 0
    weight[1, :32] = 0
    q, scale, _ = nearest(weight, 4, 32)
    assert not q[:, ::2].any() and scale[1, 0] == 0 and np.isfinite(scale).all()


def test_the_pass_reports(network):
    model = ingest(network)
    findings = passes.run_pipeline(model, "quantise-weights{bits=4,group=16,min_size=6000}")
    found = [(f.outcome, f.reason) for f in findings if f.pass_name == "quantise-weights"]
    assert found[0][0] == "applied" and found[0][1].startswith("4 bits, groups of 16: ")
    assert found[1] == ("declined", "5600 weights are fewer than min_size=6000")
    x = np.random.default_rng(1).standard_normal((3, 96)).astype("f")
    near, exact = reference_of(model, x), reference_of(ingest(network), x)
    assert 0.01 < np.abs(near - exact).max() / np.abs(exact).max() < 0.2


def test_convolutions_are_told():
    text = "(float[1,8,9,9] x) => (float[1,8,9,9] y) { y = Conv(x, w) }"
    model = ir.from_proto(model_of(text, w=RNG.standard_normal((8, 8, 1, 1)).astype("f")))
    (found,) = passes.run_pipeline(model, "quantise-weights")[-1:]
    assert (found.outcome, found.reason) == ("declined", "a convolution, which reads each weight often")


@pytest.mark.parametrize(
    "text,reason", [("bits=3", "bits must be"), ("group=24", "a multiple of 16, at most 256")]
)
def test_the_pass_refuses(text, reason):
    with pytest.raises(passes.PassError, match=reason):
        passes.parse_pipeline(f"quantise-weights{{{text}}}")


def blocked(signed):
    """Two products whose weights have scales and zero points for blocks, one of them transposed."""
    kinds = (ir.DataType.INT8, ir.DataType.INT4) if signed else (ir.DataType.UINT8, ir.DataType.UINT4)
    rng, constants = np.random.default_rng(3), {}
    for i, (kind, shape, blocks) in enumerate(
        zip(kinds, ((96, 80), (70, 80)), ((3, 80), (70, 5)), strict=True)
    ):
        low, high = (0, 16) if kind.bitwidth == 4 else (0, 256)
        low, high = (low - high // 2, high // 2) if signed else (low, high)
        for name, size in (("q", shape), ("z", blocks)):
            values = rng.integers(low, high, size)
            constants[f"{name}{i}"] = onnx.helper.make_tensor(
                "t", int(kind), size, values.reshape(-1).tolist()
            )
        constants[f"s{i}"] = rng.random(blocks).astype("f") / 100
    text = """(float[3,96] x) => (float[3,70] y) {
        u = DequantizeLinear<axis = 0, block_size = 32>(q0, s0, z0) a = MatMul(x, u) b = Relu(a)
        v = DequantizeLinear<axis = 1, block_size = 16>(q1, s1, z1) t = Transpose<perm = [1, 0]>(v)
        y = MatMul(b, t)
    }"""
    return model_of(text, 21, **constants)


def nbits():
    rng = np.random.default_rng(3)
    q, z = rng.integers(0, 256, (70, 3, 16)).astype(np.uint8), rng.integers(0, 256, 140).astype(np.uint8)
    text = """(float[3,96] x) => (float[3,70] y) {
        y = com.microsoft.MatMulNBits<K = 96, N = 70, bits = 4, block_size = 32>(x, q, s, z)
    }"""
    return model_of(text, 20, ["com.microsoft"], q=q, s=rng.random(210).astype("f") / 50, z=z)


def unsigned(zeros=0.0):
    """Without zero points, which then are 0: half of the numbers are zero where that is asked for."""
    rng = np.random.default_rng(3)
    q = rng.integers(1, 256, (96, 70)).astype(np.uint8) * (rng.random((96, 70)) >= zeros)
    text = "(float[3,96] x) => (float[3,70] y) { w = DequantizeLinear(q, s) y = MatMul(x, w) }"
    return model_of(text, 13, q=q.astype(np.uint8), s=np.float32(0.01))


def by_channel():
    rng = np.random.default_rng(3)
    q, s = rng.integers(-127, 128, (70, 96)).astype(np.int8), rng.random(70).astype("f") / 500
    text = """(float[3,96] x) => (float[3,70] y) {
        w = DequantizeLinear<axis = 0>(q, s) y = Gemm<transB = 1>(x, w, c)
    }"""
    return model_of(text, 13, q=q, s=s, c=BIAS)


@pytest.mark.parametrize(
    "made,count",
    [
        (blocked(True), 2),
        (blocked(False), 2),
        (nbits(), 1),
        (by_channel(), 1),
        (unsigned(), 1),
        (unsigned(0.5), 0),
    ],
    ids=["int8 and int4", "uint8 and uint4", "MatMulNBits", "int8 by channel", "uint8", "many zeros"],
)
def test_models_that_bring_integers(made, count, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    model = ingest(path)
    kept = [node for node in model.graph if node.op_type == "WeightQuantMatMul"]
    assert len(kept) == count
    x = np.random.default_rng(1).standard_normal((3, 96)).astype("f")
    options = ort.SessionOptions()  # its optimisations quantise activations as well
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    want = session.run(None, {"x": x})[0]
    assert np.abs(reference_of(model, x) - want).max() <= 1e-5 * np.abs(want).max()


def test_compiles_what_a_model_brings(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(nbits(), path)
    report = compile_model(CompileRequest(str(path), str(tmp_path / "m.sparsec"), "native"))
    assert report["precision"] == "int8-weights"
    assert report["layers"][0]["precision"] == "int4 weights, groups of 32"
    assert report["receipt"]["max_error"]["y"]["max_rel_to_scale"] < 1e-4


def test_restore_gives_the_floats_back(network):
    model, x = ingest(network), np.random.default_rng(1).standard_normal((3, 96)).astype("f")
    passes.run_pipeline(model, "quantise-weights{bits=4}")
    want = reference_of(model, x)
    restore(model)
    assert all(node.op_type != "WeightQuantMatMul" for node in model.graph)
    np.testing.assert_array_equal(reference_of(model, x), want)


def test_a_pattern_is_kept(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(
        model_of("(float[2,64] x) => (float[2,96] y) { y = MatMul(x, w) }", w=np.tile(W1.T[:64], 1)), path
    )
    out, given = str(tmp_path / "m.sparsec"), "nm{n=2,m=4,block=32}"
    report = compile_model(CompileRequest(str(path), out, "native", given, precision="int8-weights"))
    (layer,) = report["layers"]
    assert layer["pattern"] == "2:4x32" and layer["kernel"] == "sparse"
    assert report["receipt"]["max_error"]["y"]["max_rel_to_scale"] < 1e-4
    assert report["choices"] == {layer["name"]: "sparse"}


def test_the_function_is_its_meaning(network):
    model = ingest(network)
    passes.run_pipeline(model, "quantise-weights")
    node = next(node for node in model.graph if node.op_type == "WeightQuantMatMul")
    q, s, z, i = (value.const_value.numpy() for value in node.inputs[1:])
    assert np.abs(dequantised(q, s, z, i).T - W1).max() < 0.02


def correlated(samples, width):
    """Inputs of which a few directions hold most, as activations do."""
    rng = np.random.default_rng(4)
    mix = rng.standard_normal((width, width)) * np.exp(-4 * np.arange(width) / width)[:, None]
    return (rng.standard_normal((samples, width)) @ mix + rng.standard_normal(width)).astype("f")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "x.npz"
    x = correlated(600, 96)
    np.savez(path, x=x[:300])
    return str(path), x[300:]


OPEN = """(float[n,96] x) => (float[n,70] y) {
    a = MatMul(x, w1) s = Add(a, d) b = Relu(s) y = Gemm(b, w2, c)
}"""


def test_calibration_takes_back_most_of_what_rounding_does(calibration):
    path, x = calibration
    proto = model_of(OPEN, w1=W1, w2=W2, c=BIAS, d=np.full(80, 3, "f"))
    asked = passes.parse_pipeline("quantise-weights{bits=4}")
    exact, errors = reference_of(ir.from_proto(proto), x), []
    for pipeline in (asked, calibrated(asked, path, print)):
        model = ir.from_proto(proto)
        findings = [f for f in passes.run_pipeline(model, pipeline) if f.pass_name == "quantise-weights"]
        onnx.checker.check_model(ir.to_proto(model))
        errors.append(np.square(reference_of(model, x) - exact).mean())
    assert errors[1] < 0.4 * errors[0]
    assert [f.outcome for f in findings] == ["applied", "applied"]
    assert all("with weights rounded to the nearest, " in f.reason for f in findings)
    for node in (n for n in model.graph if n.op_type == "WeightQuantMatMul"):
        q, s, *_ = (value.const_value.numpy() for value in node.inputs[1:])
        assert q.dtype == np.int8 and q.min() >= -8 and q.max() <= 7
        assert not (s.view(np.uint32) & 0xFFFF).any()  # bfloat16


def test_the_error_told_is_that_of_the_outputs(calibration):
    """Against float64, with the bias that the model has now, and about the mean of the outputs."""
    path, _ = calibration
    x = np.load(path)["x"].astype("d")
    proto = model_of("(float[n,96] x) => (float[n,80] y) { y = Gemm(x, w) }", w=W1)
    model = ir.from_proto(proto)
    (found,) = passes.run_pipeline(model, calibrated(passes.parse_pipeline("quantise-weights"), path, print))
    q, s, z, i = (v.const_value.numpy() for v in model.graph.node(0).inputs[1:])
    bias = next(v.const_value.numpy() for v in model.graph.node(1).inputs if v.is_initializer())
    wanted = x @ W1.astype("d")
    off = x @ dequantised(q, s, z, i).T.astype("d") + bias - wanted
    error = np.square(off).sum() / np.square(wanted - wanted.mean(axis=0)).sum()
    told = float(found.reason.removesuffix(" % as fitted").split()[-1]) / 100
    assert told == pytest.approx(error, rel=0.5, abs=2e-5)


def test_calibration_keeps_patterns_and_shared_weights(calibration):
    path, x = calibration
    text = """(float[n,96] x) => (float[n,70] y, float[n,96] z) {
        a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Gemm<alpha = 0.5>(c, v) z = Relu(c)
    }"""
    w = np.random.default_rng(0).standard_normal((96, 96)).astype("f")
    model = ir.from_proto(model_of(text, w=w, v=W1[:, :70]))
    pipeline = passes.parse_pipeline("nm{n=2,m=4,block=16,skip=*y*},quantise-weights{bits=4}")
    findings = passes.run_pipeline(model, calibrated(pipeline, path, print))
    made = [node for node in model.graph if node.op_type == "WeightQuantMatMul"]
    assert len(made) == 3 and made[0].inputs[1] is made[1].inputs[1]
    assert [made[0].attributes[name].as_int() for name in ("n", "m", "block")] == [2, 4, 16]
    q = made[0].inputs[1].const_value.numpy()
    kept = (q.reshape(6, 16, 24, 4) != 0).any(axis=1).sum(axis=-1)
    assert kept.max() == 2
    last = [f.reason for f in findings if f.pass_name == "quantise-weights"][-1]
    assert "to the nearest: calibration takes a Gemm with alpha = beta = 1 only" in last
    assert np.isfinite(reference_of(model, x)).all()


def test_compiles_with_calibration(calibration, tmp_path):
    path, _ = calibration
    onnx.save(model_of(OPEN.replace("[n,", "[3,"), w1=W1, w2=W2, c=BIAS, d=BIAS[:1]), tmp_path / "m.onnx")
    request = CompileRequest(
        str(tmp_path / "m.onnx"), str(tmp_path / "m.sparsec"), "native", precision="int4-weights", calib=path
    )
    report = compile_model(request)
    reasons = [f["reason"] for f in report["findings"] if f["pass_name"] == "quantise-weights"]
    assert len(reasons) == 2 and all(reason.endswith("% as fitted") for reason in reasons)
    assert report["receipt"]["max_error"]["y"]["max_rel_to_scale"] < 1e-4


@pytest.mark.parametrize(
    "n,m,block,words",
    [(2, 4, 8, "patterns shared by a multiple of 16 channels"), (1, 3, 16, "no whole groups of 3")],
)
def test_patterns_that_are_stored_dense_are_told(n, m, block, words):
    model = ir.from_proto(model_of("(float[2,96] x) => (float[2,80] y) { y = MatMul(x, w) }", w=W1))
    given = f"nm{{n={n},m={m},block={block}}},quantise-weights"
    passes.run_pipeline(model, given)
    model.graph.node(0).name = "layer"
    found = choose(model, CompileRequest("m.onnx", "m.sparsec", "x86"), ("v4", "v3"))
    assert found.kernels == {"layer": "dense"}
    assert [f.outcome for f in found.findings] == ["declined"] and words in found.findings[0].reason
    with pytest.raises(CompileError, match="--sparsity require"):
        choose(model, CompileRequest("m.onnx", "m.sparsec", "x86", sparsity="require"), ("v4", "v3"))


def test_weights_that_no_kernel_takes_are_told(tmp_path):
    path = tmp_path / "m.onnx"
    q, s = np.ones((96, 70), np.int8), np.full((4, 70), 0.01, "f")
    text = """(float[3,96] x) => (float[3,70] y) {
        w = DequantizeLinear<axis = 0, block_size = 24>(q, s) y = MatMul(x, w)
    }"""
    onnx.save(model_of(text, 21, q=q, s=s), path)
    model = ingest(path)
    passes.run_pipeline(model)
    (found,) = precision.assign(model, "fp32", ("v4",))
    assert (found.outcome, found.after) == ("declined", "float32")
    assert "groups of a multiple of 16 channels, at most 256, are required, found 24" in found.reason
