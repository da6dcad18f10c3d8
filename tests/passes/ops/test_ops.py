"""Every operator: its body in ONNX Runtime and in onnx's evaluator against its NumPy meaning."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from sparsec.passes import PassError
from sparsec.passes.ops import DOMAIN, OPS, ensure_function, entmax, infer, sparsemax, threshold

ROOT = Path(__file__).resolve().parents[3]
NAN, INF = np.nan, np.inf
MINE = [op.name for op in (*threshold.OPS, *sparsemax.OPS, *entmax.OPS)]

# Rows with ties, all equal, masks, infinities, NaN, cancellation, zeros of both signs.
ROWS = np.array(
    [
        [1, 2, NAN, 3],
        [NAN, NAN, NAN, NAN],
        [-INF, -INF, -INF, -INF],
        [INF, 1, 2, 3],
        [INF, INF, 0, -INF],
        [1, -INF, -INF, 1],
        [0, 0, 0, 0],
        [5, 5, 5, 5],
        [-0.0, 0.25, 0.3, -0.3],
        [3, 2.5, 2.5, -7],
        [6e4, 0, -6e4, 1],
    ]
)


def model_with(name: str, arrays: list[np.ndarray], attributes: dict, opset: int) -> ir.Model:
    """A model of one node; its inputs are the arrays' shapes and types."""
    inputs = [
        ir.Value(name=f"i{k}", shape=ir.Shape(a.shape), type=ir.TensorType(ir.DataType.from_numpy(a.dtype)))
        for k, a in enumerate(arrays)
    ]
    node = ir.node(name, inputs, attributes, domain=DOMAIN)
    out = node.outputs[0]
    out.name = "y"
    out.dtype, out.shape = infer(node)
    model = ir.Model(ir.Graph(inputs, [out], nodes=[node], opset_imports={"": opset}, name="g"), ir_version=8)
    ensure_function(model, name)
    return model


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("opset", [18, 20, 21])
@pytest.mark.parametrize("name", MINE)
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*")
def test_body_means_what_numpy_says(name, opset, dtype, run_ort, tmp_path):
    op = OPS[name]
    operands = [ROWS, np.array([[0.3], [0.0]] * 5 + [[0.25]]), np.array(0.5)]
    arrays = [a.astype(dtype) for a in operands[: len(op.inputs)]]
    attributes = {"Sparsemax": {"axis": 1}, "Entmax": {"axis": 1, "alpha": 1.5}}.get(name, {})
    model = model_with(name, arrays, attributes, opset)
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    feeds = {f"i{k}": a for k, a in enumerate(arrays)}
    expected = op.reference(*arrays)
    assert expected.dtype == dtype and expected.shape == ROWS.shape
    outputs = run_ort(path, feeds), ReferenceEvaluator(proto).run(None, feeds)[0]
    if name == "Sparsemax" and dtype == np.float16:
        for got in outputs:  # sums in float16 there, in float32 here
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3)
            assert np.array_equal(got == 0, expected == 0)
        return
    for got in outputs:
        assert got.dtype == dtype
        if name == "Entmax":  # the reference works in float64
            np.testing.assert_allclose(got, expected, rtol=0, atol=float(2 * np.finfo(dtype).eps))
        else:
            np.testing.assert_array_equal(got, expected)


def exact(name: str, x: float, tau: float, m: float) -> float:
    """The formulas once more, one float at a time, by cases instead of by min and max."""
    if np.isnan(x):
        return 0.0 if name in ("HardThreshold", "JumpRelu") else NAN
    soft = x - tau if x > tau else x + tau if x < -tau else 0.0
    return {
        "SoftThreshold": soft,
        "HardThreshold": x if x > tau or x < -tau else 0.0,
        "ShiftedRelu": x - tau if x > tau else 0.0,
        "JumpRelu": x if x > tau else 0.0,
        "ClippedSoftThreshold": m if soft > m else -m if soft < -m else soft,
        "ClippedShiftedRelu": 0.0 if x <= tau else m if x - tau > m else x - tau,
    }[name]


@pytest.mark.parametrize("name", [op.name for op in threshold.OPS])
def test_threshold_meaning_by_cases(name):
    x, tau, m = ROWS.ravel(), np.float64(0.3), np.float64(0.5)
    got = OPS[name].reference(*[x, tau, m][: len(OPS[name].inputs)])
    np.testing.assert_array_equal(got, [exact(name, v, tau, m) for v in x])


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_sparsemax_on_every_axis(axis, run_ort):
    torch = pytest.importorskip("torch")
    entmax = pytest.importorskip("entmax")
    x = np.random.default_rng(axis + 3).normal(scale=2, size=(5, 6, 7)).astype(np.float32)
    x[1, 2, :3] = x[1, 2, 3]  # ties
    expected = entmax.sparsemax(torch.tensor(x), dim=axis).numpy()
    np.testing.assert_allclose(sparsemax.sparsemax(x, axis), expected, rtol=0, atol=2e-7)
    got = run_ort(model_with("Sparsemax", [x], {"axis": axis}, 20), {"i0": x})
    np.testing.assert_array_equal(got, expected)


def test_sparsemax_axis_defaults_to_the_last(run_ort):
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    got = run_ort(model_with("Sparsemax", [x], {}, 20), {"i0": x})
    np.testing.assert_array_equal(got, run_ort(model_with("Sparsemax", [x], {"axis": 1}, 20), {"i0": x}))
    np.testing.assert_allclose(got.sum(-1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 31, 128, 1000])
def test_sparsemax_is_the_projection(n):
    """Optimality of the projection, in float64: p >= 0, sum 1, z - p constant on the support."""
    z = np.random.default_rng(n).normal(scale=0.3, size=(20, n))
    p = sparsemax.sparsemax(z)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(-1), 1, rtol=0, atol=1e-12)
    tau = np.where(p > 0, z - p, np.nan)
    np.testing.assert_allclose(np.nanmax(tau, -1), np.nanmin(tau, -1), rtol=0, atol=1e-12)
    assert (np.where(p > 0, -np.inf, z) <= np.nanmax(tau, -1, keepdims=True) + 1e-12).all()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_sparsemax_keeps_digits_of_large_inputs(size):
    x = (1e4 + np.random.default_rng(size).normal(size=(8, size))).astype(np.float32)
    p = sparsemax.sparsemax(x)
    np.testing.assert_allclose(p, sparsemax.sparsemax(x.astype(np.float64)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.05, 1.3, 1.5, 1.8, 2.0, 3.0])
@pytest.mark.parametrize("axis, n", [(1, 1), (1, 7), (0, 129), (-1, 1000)])
def test_entmax_is_entmax_s(alpha, axis, n, run_ort):
    torch, package = pytest.importorskip("torch"), pytest.importorskip("entmax")
    shape = [5, 5]
    shape[axis] = n
    x = np.random.default_rng(n).normal(size=shape) * np.geomspace(1e-5, 30, 5).reshape(
        -1, *[1] * (axis != 0)
    )
    exact = float(np.float32(alpha))
    want = package.entmax_bisect(torch.tensor(x), exact, dim=axis, n_iter=80).numpy()
    np.testing.assert_allclose(entmax.entmax(x, alpha, axis), want, rtol=0, atol=1e-13)
    if alpha == 1.5:
        sort = package.entmax15(torch.tensor(x), dim=axis).numpy()
        np.testing.assert_allclose(entmax.entmax(x, alpha, axis), sort, rtol=0, atol=1e-13)
    got = run_ort(model_with("Entmax", [x], {"axis": axis, "alpha": alpha}, 20), {"i0": x})
    # Above alpha 2 a share rises without bound from 0: 24 halvings in float64 show.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 if alpha <= 2 else 1e-3)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.9])
def test_entmax_solves_its_equation(alpha):
    """SciPy's root of sum max(a z - tau, 0)^(1/a) = 1, row by row."""
    optimize = pytest.importorskip("scipy.optimize")
    a = float(np.float32(alpha)) - 1
    for z in np.random.default_rng(3).normal(size=(4, 33)):
        z = a * (z - z.max())
        tau = optimize.brentq(lambda t, z=z: (np.maximum(z - t, 0) ** (1 / a)).sum() - 1, -1, 0, xtol=1e-15)
        np.testing.assert_allclose(entmax.entmax(z / a, alpha), np.maximum(z - tau, 0) ** (1 / a), atol=1e-12)


def test_entmax_defaults(run_ort):
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    got = run_ort(model_with("Entmax", [x], {}, 20), {"i0": x})
    np.testing.assert_array_equal(
        got, run_ort(model_with("Entmax", [x], {"alpha": 1.5, "axis": 1}, 20), {"i0": x})
    )


@pytest.mark.parametrize("name", [op.name for op in threshold.OPS])
def test_shape_and_type_inference_agree_with_onnx(name):
    """Sparsemax is not among them: onnx does not see through its TopK; the body test checks its shape."""
    arrays = [np.zeros((2, 3), np.float32), np.zeros((3,), np.float32), np.ones((), np.float32)]
    model = model_with(name, arrays[: len(OPS[name].inputs)], {}, 20)
    proto = ir.to_proto(model)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto)).graph.outputs[0]
    mine = model.graph.outputs[0]
    assert (inferred.dtype, list(inferred.shape)) == (mine.dtype, list(mine.shape))


def test_function_and_import_are_put_in_once():
    model = model_with("Sparsemax", [ROWS], {}, 20)
    first = model.functions[(DOMAIN, "Sparsemax", "")]
    assert ensure_function(model, "Sparsemax") is first
    assert model.opset_imports[DOMAIN] == 1 and len(model.functions) == 1
    assert first.opset_imports == {"": 20}


def test_errors():
    model = model_with("Sparsemax", [ROWS], {}, 20)
    with pytest.raises(PassError, match="ai.sparsec has no operator 'Sparsemin'; it has SoftThreshold, "):
        ensure_function(model, "Sparsemin")
    with pytest.raises(PassError, match="ai.onnx.Relu is no ai.sparsec operator; those are SoftThreshold"):
        infer(ir.node("Relu", model.graph.inputs))
    model.opset_imports[DOMAIN] = 7
    with pytest.raises(
        PassError, match="imports ai.sparsec version 7, this sparsec has 1; use the newer one"
    ):
        ensure_function(model, "SoftThreshold")
    model.opset_imports.clear()
    with pytest.raises(PassError, match="need opset 18 or newer, the model imports none"):
        ensure_function(model, "SoftThreshold")


def test_operators_page_is_current():
    page = subprocess.run(
        [sys.executable, "-m", "sparsec.passes.ops"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert page == (ROOT / "docs/operators.md").read_text(), (
        "run: python -m sparsec.passes.ops > docs/operators.md"
    )
    for name in OPS:
        assert f"\n## {name}\n" in page
