"""The low-rank term against Eckart and Young and torch, and in a whole model."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from scipy.linalg import sqrtm

from sparsec.compiler.errors import CompileError
from sparsec.compiler.prune import PruneRequest, prune_model
from sparsec.passes import run_pipeline
from sparsec.passes.prune.least_squares import on_support
from sparsec.passes.prune.low_rank import fit_term

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_one_turn_leaves_the_small_singular_values(problem, rank):
    """With any root of G, the error beside the rest is the sum of the squares of those that are cut off."""
    posed = problem(7, 12)
    mask = RNG.random((7, 12)) < 0.5
    weight, left, right = fit_term(posed, mask, rank, turns=1)
    np.testing.assert_allclose(weight, on_support(posed, mask))
    values = np.linalg.svd((posed.target - weight) @ sqrtm(posed.gram).real, compute_uv=False)
    wanted = (np.square(values[rank:]).sum() + posed.rest) / posed.scale
    assert posed.error(weight + left @ right) == pytest.approx(wanted, rel=1e-8)
    assert left.shape == (7, rank) and right.shape == (rank, 12)


def test_turns_never_lose_and_keep_the_zeros(problem):
    posed = problem(9, 16)
    mask = RNG.random((9, 16)) < 0.5
    errors = []
    for turns in range(1, 8):
        weight, left, right = fit_term(posed, mask, 2, turns=turns)
        assert not weight[~mask].any()
        errors.append(posed.error(weight + left @ right))
    assert all(b <= a + 1e-12 for a, b in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.99 * errors[0]


def test_gradient_descent_finds_next_to_nothing_better(problem):
    """torch, from where the turns end, over weight and both factors."""
    posed = problem(5, 8)
    mask = torch.from_numpy(RNG.random((5, 8)) < 0.5)
    weight, left, right = (torch.tensor(a, requires_grad=True) for a in fit_term(posed, mask.numpy(), 1, 400))
    gram, target = torch.from_numpy(posed.gram), torch.from_numpy(posed.target)

    def loss():
        off = weight * mask + left @ right - target
        return ((off @ gram) * off).sum()

    before = loss().item()
    optimiser = torch.optim.LBFGS([weight, left, right], max_iter=200, line_search_fn="strong_wolfe")
    optimiser.step(lambda: (optimiser.zero_grad(), value := loss(), value.backward())[1])
    assert 0.99 * before < loss().item() <= before


@pytest.fixture
def mlp(mlp_of):
    """x `[16, 24]` -> 40 -> Relu -> 20, the last layer an output itself; and its calibration data."""
    weights = [RNG.standard_normal(shape) for shape in ((24, 40), 40, (40, 20))]
    x = RNG.standard_normal((480, 24)).astype(np.float32)
    return *mlp_of(*weights, x), x[:16]


@pytest.mark.parametrize("sweeps", [1, 2])
def test_a_pruned_model_comes_nearer(mlp, sweeps, ort_run):
    proto, calib, x = mlp
    dense = ort_run(proto.SerializeToString(), {"x": x})["y"]
    errors = {}
    for rank in (0, 4):
        model = ir.from_proto(proto)
        request = PruneRequest("2:4", "wanda", calib, min_size=0, sweeps=sweeps, rank=rank, group=False)
        findings, layers = prune_model(model, request, lambda line: None)
        made = ir.to_proto(model)
        onnx.checker.check_model(made, full_check=True)
        assert [value.name for value in made.graph.output] == ["y"]
        errors[rank] = np.square(ort_run(made.SerializeToString(), {"x": x})["y"] - dense).sum()
    assert errors[4] < 0.6 * errors[0]
    assert [layer["rank"] for layer in layers] == [4, 4]
    assert all("with a term of rank 4" in f.reason for f in findings)
    run_pipeline(model, "")
    assert [node.op_type for node in model.graph] == ["NMMatMulLowRank", "Add", "Relu", "NMMatMulLowRank"]
    after = ort_run(ir.to_proto(model).SerializeToString(), {"x": x})["y"]
    assert np.square(after - dense).sum() == pytest.approx(errors[4], rel=1e-3)


def test_a_rank_that_saves_nothing_is_left_out(mlp):
    proto, calib, _ = mlp
    model = ir.from_proto(proto)
    request = PruneRequest("2:4", "wanda", calib, min_size=0, rank=12, group=False)
    _, layers = prune_model(model, request, lambda line: None)
    assert [layer["rank"] for layer in layers] == [0, 0]
    assert [node.op_type for node in model.graph] == ["NMMatMul", "Add", "Relu", "NMMatMul"]


def test_channels_have_no_term(mlp):
    proto, calib, _ = mlp
    request = PruneRequest("channels:50%", "search", calib, min_size=0, rank=2)
    with pytest.raises(CompileError, match="--rank 2: needs a pattern of single weights, found channels:50%"):
        prune_model(ir.from_proto(proto), request, lambda line: None)
