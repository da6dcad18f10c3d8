"""Least squares of the kept weights, against NumPy's lstsq in float64."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sparsec.passes import PassError  # noqa: E402
from sparsec.passes.train import refit, sparse_weights, sparsify  # noqa: E402

torch.manual_seed(0)
INPUT = torch.randn(400, 33) @ torch.randn(33, 33) + 1


def lstsq(x, y, keep):
    """Per row of ``keep`` the least-squares solution over the kept columns of x, zeros elsewhere."""
    found = np.zeros(keep.shape)
    for row, kept in enumerate(keep):
        found[row, kept] = np.linalg.lstsq(x[:, kept], y[:, row], rcond=None)[0]
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pattern", ["2:4x32", "2:4x4", "2:4"])
def test_linear(pattern, bias, monkeypatch):
    monkeypatch.setattr("sparsec.passes.train.least_squares.DAMPING", 0.0)
    teacher = nn.Linear(33, 47, bias=bias)
    student = copy.deepcopy(teacher)
    sparsify(student, pattern)
    refit(student, teacher, [(INPUT[:200],), (INPUT[200:],)])
    x, y = INPUT.double().numpy(), teacher(INPUT).detach().double().numpy()
    ((_, _, _, masked),) = sparse_weights(student)
    keep, ones = masked.mask.numpy(), np.ones((len(x), 1))
    if bias:
        expected = lstsq(np.hstack([x, ones]), y, np.hstack([keep, np.ones((47, 1), bool)]))
        np.testing.assert_allclose(student.bias.detach(), expected[:, -1], rtol=2e-3, atol=2e-3)
        expected = expected[:, :-1]
    else:
        expected = lstsq(x, y, keep)
    np.testing.assert_allclose(student.weight.detach(), expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(masked.power[0], (x**2).mean(0), rtol=1e-5)


def test_convolution_is_the_linear_layer_of_its_patches():
    teacher = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    student, x = copy.deepcopy(teacher), torch.randn(6, 8, 13, 15).cumsum(1)
    sparsify(student, "2:4x16", min_size=0)
    before = (student(x) - teacher(x)).square().mean()
    refit(student, teacher, [(x,)])
    patches = nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 72)
    keep = student.weight.detach().flatten(1).numpy() != 0
    ones = np.ones((len(patches), 1))
    y = teacher(x).detach().permute(0, 2, 3, 1).reshape(-1, 16).double().numpy()
    expected = lstsq(np.hstack([patches, ones]), y, np.hstack([keep, np.ones((16, 1), bool)]))
    found = (student(x) - teacher(x)).square().mean().item()
    assert found < 0.7 * before
    best = ((np.hstack([patches, ones]) @ expected.T - y) ** 2).mean()
    assert found == pytest.approx(best, rel=0.01)


def test_later_layers_mend_what_earlier_ones_broke():
    teacher = nn.Sequential(nn.Linear(33, 64), nn.ReLU(), nn.Linear(64, 31))
    student = copy.deepcopy(teacher)
    sparsify(student, "2:4x16")
    alone = copy.deepcopy(student)
    refit(student, teacher, [(INPUT,)])
    error = (student(INPUT) - teacher(INPUT)).square().mean().item()
    assert error < 0.5 * (alone(INPUT) - teacher(INPUT)).square().mean().item()
    # The last layer is the best one for its mask, given its inputs: no nearby weight does better.
    ((*_, first), (*_, last)) = sparse_weights(student)
    assert first.leak == last.leak == 0
    x = torch.relu(student[0](INPUT)).detach().double().numpy()
    y, ones = teacher(INPUT).detach().double().numpy(), np.ones((len(x), 1))
    both = np.hstack([x, ones])
    best = lstsq(both, y, np.hstack([last.mask.numpy(), np.ones((31, 1), bool)]))
    assert error == pytest.approx(((both @ best.T - y) ** 2).mean(), rel=0.02)


def test_a_layer_that_does_not_run_is_named():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(33, 64), nn.Linear(33, 64)

        def forward(self, x):
            return self.used(x)

    teacher = Lazy()
    student = copy.deepcopy(teacher)
    sparsify(student, "2:4")
    with pytest.raises(PassError, match="refit: unused does not run for the first batch; name it in skip"):
        refit(student, teacher, [(INPUT,)])
