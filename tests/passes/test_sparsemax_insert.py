"""Softmax replaced by sparsemax on request: which ones, and what comes out."""

import numpy as np
import pytest

from sparsec.passes import PassError, parse_pipeline, run_pipeline

ATTENTION = (
    "s = MatMul(q, kt) p = Softmax <axis=-1> (s) dr = Dropout(p) o = MatMul(dr, v) "
    "l = MatMul(o, w) y = Softmax(l)"
)
INPUTS = "float[2,5,4] q, float[2,4,5] kt, float[2,5,4] v"
WEIGHT = "float[4,3] w = {1, 2, -1, 0.5, 2, 1, 1, -2, 1, 3, 1, 1}"


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 5, 4), "kt": (2, 4, 5), "v": (2, 5, 4)}
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def ours(findings):
    return [f for f in findings if f.pass_name == "sparsemax"]


def test_attention_only_by_default(model_of, transform, op_types):
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    model = model_of(ATTENTION, INPUTS, "float[2,5,3] y", WEIGHT)
    findings, _, after = transform(model, feeds(), "sparsemax")
    assert op_types(model) == ["MatMul", "Sparsemax", "Dropout", "MatMul", "MatMul", "Softmax"]
    first, second = ours(findings)
    assert (first.outcome, first.reason) == ("applied", "asked for; along axis -1")
    assert second.outcome == "declined"
    assert (
        second.reason
        == "no attention: its result is multiplied with no computed tensor; where=all takes it too"
    )
    q, kt, v = (torch.tensor(a) for a in feeds().values())
    w = torch.tensor([1, 2, -1, 0.5, 2, 1, 1, -2, 1, 3, 1, 1]).reshape(4, 3)
    expected = torch.softmax(entmax.sparsemax(q @ kt, dim=-1) @ v @ w, -1)
    np.testing.assert_allclose(after, expected.numpy(), rtol=0, atol=1e-6)


def test_all(model_of, transform, op_types):
    model = model_of(ATTENTION, INPUTS, "float[2,5,3] y", WEIGHT)
    findings, _, after = transform(model, feeds(), "sparsemax{where=all}")
    assert op_types(model).count("Sparsemax") == 2
    assert all(f.applied for f in ours(findings))
    assert (after == 0).any()
    np.testing.assert_allclose(after.sum(-1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
def test_entmax_instead(alpha, model_of, transform, op_types):
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    model = model_of("y = Softmax <axis=1> (x)", "float[4,5,6] x", "float[4,5,6] y")
    x = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
    findings, _, after = transform(model, {"x": x}, f"entmax{{alpha={alpha},where=all}}")
    assert op_types(model) == ["Sparsemax" if alpha == 2 else "Entmax"]
    (finding,) = [f for f in findings if f.pass_name == "entmax"]
    why = "with alpha 2 entmax is sparsemax" if alpha == 2 else f"alpha {alpha}"
    assert finding.reason == f"asked for; {why}; along axis 1"
    want = entmax.entmax_bisect(torch.tensor(x, dtype=torch.float64), alpha, dim=1, n_iter=60).numpy()
    np.testing.assert_allclose(after, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", ["1", "2.5"])
def test_an_alpha_that_no_kernel_takes_is_refused(alpha):
    with pytest.raises(PassError, match="entmax: option alpha must be from 1.01 to 2, got .*; 1 is softmax"):
        parse_pipeline(f"entmax{{alpha={alpha}}}")


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_axis_is_kept(axis, model_of, transform):
    model = model_of(f"y = Softmax <axis={axis}> (x)", "float[4,5] x", "float[4,5] y")
    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    findings, _, after = transform(model, {"x": x}, "sparsemax{where=all}")
    np.testing.assert_allclose(after.sum(axis), 1, rtol=0, atol=1e-6)
    assert findings[-1].reason == f"asked for; along axis {axis}"


def test_multiplied_with_a_constant_is_no_attention(model_of, unchanged):
    model = model_of("p = Softmax(x) y = MatMul(p, w)", "float[5,4] x", "float[5,3] y", WEIGHT)
    was = unchanged(model)
    (finding,) = ours(run_pipeline(model, "sparsemax"))
    assert finding.outcome == "declined"
    assert unchanged(model) == was


def test_nothing_to_do_is_said(model_of):
    (finding,) = run_pipeline(model_of("y = Exp(x)"), "sparsemax")
    assert (finding.outcome, finding.node, finding.reason) == ("declined", "g", "has no Softmax")
