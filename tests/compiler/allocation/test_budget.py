"""Judging a pruned model: errors, cosines, metrics, and hooks that fail."""

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from sparsec.compiler.allocation.budget import Budget, Judgement, accuracy, hook, judge, unpadded
from sparsec.compiler.errors import CompileError

RNG = np.random.default_rng(0)


def batches(array, size=4):
    return [{"y": array[i : i + size]} for i in range(0, len(array), size)]


def test_error_and_cosine_are_those_of_numpy_and_scipy():
    dense = RNG.standard_normal((12, 3, 5)).astype(np.float32)
    pruned = dense + 0.1 * RNG.standard_normal(dense.shape).astype(np.float32)
    found = judge(batches(dense), batches(pruned), None)
    assert found.error == pytest.approx(np.abs(pruned - dense).max() / np.abs(dense).max(), rel=1e-6)
    wanted = [1 - cosine(a.ravel(), b.ravel()) for a, b in zip(dense.astype(float), pruned, strict=True)]
    assert found.cosine == pytest.approx(np.mean(wanted), rel=1e-6)
    assert found.drop is None


def test_the_worst_output_counts():
    same = RNG.standard_normal((4, 5)).astype(np.float32)
    dense, pruned = [{"a": same, "b": same}], [{"a": same, "b": -same}]
    found = judge(dense, pruned, None)
    assert found.cosine == pytest.approx(-1) and found.error == pytest.approx(2)


def test_accuracy():
    scores = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]]
    metric = accuracy(np.array([0, 1, 2, 0]))
    assert metric({"y": scores}) == 0.75
    worse = judge([{"y": scores}], [{"y": np.roll(scores, 1, axis=1)}], metric)
    assert worse.drop == pytest.approx(0.75 - 0.25)
    with pytest.raises(CompileError, match=r"labels of shape \[4\] do not fit the first output \[3, 4\]"):
        metric({"y": scores[:3]})


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (Budget(), True),
        (Budget(error=0.1), True),
        (Budget(error=0.01), False),
        (Budget(drop=0.02), True),
        (Budget(drop=0.005), False),
        (Budget(error=0.1, drop=0.005), False),
        (Budget(latency=0.1, size=0.1), True),
    ],
)
def test_keeping_a_budget(budget, kept):
    assert Judgement(0.05, 0.99, 0.01).keeps(budget) is kept


def test_a_drop_cannot_be_kept_without_a_metric():
    assert not Judgement(0.0, 1.0, None).keeps(Budget(drop=1.0))


def test_hook(tmp_path):
    path = tmp_path / "metric.py"
    path.write_text("def score(outputs, samples):\n    return (outputs['y'] * samples['weight']).sum()\n")
    metric = hook(f"{path}:score", {"weight": np.array([1.0, 2.0])})
    assert metric({"y": np.array([3.0, 4.0])}) == 11.0


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        (None, "score", "required FILE.py:NAME, a function in a file that exists"),
        ("1 +", "score", "SyntaxError: "),
        ("x = 1", "score", "AttributeError: .*score"),
        ("def score(outputs, samples): return {}", "score", "TypeError: "),
        ("def score(outputs): return 1", "score", "TypeError: "),
        ("def score(outputs, samples): raise KeyError('x')", "score", "KeyError: 'x'"),
    ],
)
def test_hooks_that_fail(source, name, said, tmp_path):
    path = tmp_path / "metric.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(CompileError, match=f"--metric .*metric.py:{name}: {said}"):
        hook(f"{path}:{name}", {})({"y": np.zeros(1)})


def test_padding_does_not_count():
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    rows = RNG.standard_normal((2, 3, 5)).astype(np.float32)
    found = unpadded(rows, mask)
    assert found.dtype == np.float32 and np.array_equal(found[mask != 0], rows[mask != 0])
    assert not found[mask == 0].any()
    pooled = RNG.standard_normal((2, 5)).astype(np.float32)
    assert unpadded(pooled, mask) is pooled and unpadded(rows, None) is rows
    wrong = np.where(mask[..., None] != 0, rows, 9.0).astype(np.float32)
    ends = [{"y": rows[:1]}, {"y": rows[1:]}], [{"y": wrong[:1]}, {"y": wrong[1:]}]
    assert judge(*ends, None, mask).error == 0 and judge(*ends, None).error > 1
    total = judge(*ends, lambda found: float(found["y"].sum()), mask)
    assert total.drop == pytest.approx(rows.sum() - wrong.sum()), "a metric sees all"
