"""Thresholds and Relu against ONNX Runtime, which runs the operators' bodies of standard ONNX."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

RNG = np.random.default_rng(23)
X = RNG.standard_normal((2, 17, 5, 7)).astype(np.float32)
# What thresholds are about: exactly on them, next to them, both zeros, the specials.
X.reshape(-1)[:12] = [
    0.5,
    -0.5,
    0.0,
    -0.0,
    np.nan,
    np.inf,
    -np.inf,
    0.25,
    -0.25,
    0.50000006,
    0.49999997,
    1e-45,
]
SCALAR = np.float32(0.5)
CHANNEL = np.linspace(0, 1, 17, dtype=np.float32).reshape(17, 1, 1)


def test_gelu_has_no_division(run_graph, ort_run):
    """Of quotients by a constant those that Erf alone reads become products."""
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[3, 35] x) => (float[3, 35] y, float[3, 35] z) {
            root = Constant<value_float = 1.4142135> ()
            d = Div(x, root)
            y = Erf(d)
            e = Div(x, root)
            f = Erf(e)
            z = Add(e, f)
        }"""
    )
    x = RNG.standard_normal((3, 35)).astype(np.float32)
    x[0, :4] = np.nan, np.inf, -np.inf, 1e-45
    found, expected = run_graph(proto, {"x": x}), ort_run(proto.SerializeToString(), {"x": x})
    for name, want in expected.items():
        np.testing.assert_allclose(found.outputs[name], want, rtol=1e-6, atol=1e-7)
    assert sum("divide" in step.symbol for step in found.plan.steps) == 1


# What people write, and the operator that it is recognised as.
WRITTEN = {
    "SoftThreshold": "y = Shrink <lambd = 0.5, bias = 0.5> (x)",
    "HardThreshold": "y = Shrink <lambd = 0.5, bias = 0.0> (x)",
    "JumpRelu": "y = ThresholdedRelu <alpha = 0.5> (x)",
    "ShiftedRelu": "d = Sub(x, t) y = Relu(d)",
    "SoftThreshold of channels": "s = Sign(x) a = Abs(x) d = Sub(a, t) r = Relu(d) y = Mul(s, r)",
    "HardThreshold of channels": "a = Abs(x) m = Greater(a, t) y = Where(m, x, z)",
    "JumpRelu of channels": "m = Greater(x, t) y = Where(m, x, z)",
}


def model(body: str, tau, x=X) -> onnx.ModelProto:
    dims = ",".join(map(str, x.shape))
    head = '<ir_version: 10, opset_import: ["" : 20]> g'
    proto = onnx.parser.parse_model(f"{head} (float[{dims}] x) => (y) {{ {body} }}")
    for name, value in {"t": tau, "z": np.float32(0)}.items():
        if f", {name}" in body:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return onnx.shape_inference.infer_shapes(proto)


@pytest.mark.parametrize("tau", [SCALAR, CHANNEL], ids=["scalar", "per channel"])
@pytest.mark.parametrize("case", WRITTEN)
def test_thresholds(case, tau, run_graph, ort_run):
    """NaN apart, on which the written forms differ, every number is ONNX Runtime's, to the bit."""
    proto = model(WRITTEN[case], tau)
    found, expected = (
        outputs["y"]
        for outputs in (run_graph(proto, {"x": X}).outputs, ort_run(proto.SerializeToString(), {"x": X}))
    )
    numbers = ~np.isnan(X)
    np.testing.assert_array_equal(found[numbers], expected[numbers])


@pytest.mark.parametrize("case", WRITTEN)
def test_thresholds_of_nan(case, run_graph, ort_run):
    """The operator that a pattern was recognised as treats NaN as the pattern did, or the finding says so."""
    x = np.array([[np.nan, -1.0, 1.0, 0.2]], np.float32)
    proto = model(WRITTEN[case], SCALAR, x)
    found, expected = (
        run_graph(proto, {"x": x}).outputs["y"],
        ort_run(proto.SerializeToString(), {"x": x})["y"],
    )
    if case == "SoftThreshold":  # written as Shrink, which in ONNX Runtime turns NaN into 0
        from sparsec.passes import run_pipeline

        (finding,) = run_pipeline(ir.from_proto(proto))
        assert "NaN" in finding.reason
        expected = np.where(np.isnan(x), x, expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


@pytest.mark.parametrize("kind", ["soft", "hard", "shifted", "jump"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 17), (33,)], ids=str)
def test_inserted_thresholds(kind, shape, run_graph, ort_run, agree):
    """``threshold{...}`` behind a Relu: what runs is what ONNX Runtime runs of the transformed model."""
    from sparsec.passes import PassError, parse_pipeline, run_pipeline

    x = np.resize(X, shape)
    proto = model("y = Relu(x)", SCALAR, x)
    text = f"threshold{{kind={kind},tau=0.25}}"
    try:
        pipeline = parse_pipeline(text)
    except PassError:
        pytest.fail(f"{text} is no longer a pass")
    changed = ir.from_proto(proto)
    run_pipeline(changed, pipeline)
    expected = ort_run(ir.to_proto(changed).SerializeToString(), {"x": x})
    assert (expected["y"] != ort_run(proto.SerializeToString(), {"x": x})["y"]).any() or x.size == 1
    agree(run_graph(proto, {"x": x}, text=text).outputs, expected)


@pytest.mark.parametrize("shape", [(1,), (7, 17), (2, 3, 33)], ids=str)
def test_relu(shape, single_op, same_as_ort):
    feeds = {"x": np.resize(X, shape)}
    same_as_ort(single_op("Relu", feeds), feeds, relative=0, absolute=0)


def test_relu_hands_nan_on(single_op, run_graph):
    x = np.array([np.nan, -1, -np.inf, np.inf, -0.0, 2], np.float32)
    found = run_graph(single_op("Relu", {"x": x}), {"x": x}).outputs["y"]
    np.testing.assert_array_equal(found, np.array([np.nan, 0, 0, np.inf, 0, 2], np.float32))


@pytest.mark.parametrize("dtype", ["float64", "int8", "int32"])
def test_relu_of_other_types(dtype, single_op, same_as_ort):
    feeds = {"x": RNG.integers(-50, 50, (7, 17)).astype(dtype)}
    same_as_ort(single_op("Relu", feeds, opset=20), feeds)


UNARY = """Abs Ceil Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Mish Neg Reciprocal Round
    Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tanh""".split()  # noqa: SIM905


@pytest.mark.parametrize("op", UNARY)
def test_unary_over_the_whole_range(op, single_op, same_as_ort):
    """Sizes from 1e-45 to 3e38 of both signs, the zeros and the specials."""
    size = np.logspace(-44, 38, 333, dtype=np.float64).astype(np.float32)
    x = np.concatenate([size, -size, np.linspace(-20, 20, 333), [0.0, -0.0, np.inf, -np.inf, np.nan]]).astype(
        np.float32
    )
    if op in ("Sin", "Cos"):  # ONNX Runtime's own argument reduction ends at some thousands
        x = x[~(np.abs(x) > 1000)]
    feeds = {"x": x}
    want_scale = {"relative": 1e-6} if op in ("Tanh", "Sigmoid", "Erf") else {}
    same_as_ort(single_op(op, feeds), feeds, **want_scale)
