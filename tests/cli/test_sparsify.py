"""``sparsec sparsify``: ONNX in, ONNX out, judged by ONNX Runtime."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def dense(digits):
    return digits.with_name("dense.onnx")


@pytest.fixture
def images(digits):
    with np.load(digits.with_name("test.npz")) as data:
        return data["images"].astype(np.float32)


def test_pruned_weights_keep_to_the_pattern(call, dense, tmp_path):
    out = tmp_path / "out file.onnx"
    result = call("sparsify", dense, "--passes", "nm{n=2,m=4,block=16}", "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["size"] == out.stat().st_size
    model = onnx.load(out)
    onnx.checker.check_model(model)
    pruned = 0
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim == 4 and weight.shape[1] > 1:
            outputs, inputs, *taps = weight.shape
            groups = (weight != 0).reshape(outputs // 16, 16, inputs // 4, 4, *taps)
            assert groups.any(axis=1).sum(axis=2).max() == 2
            pruned += 1
    assert pruned == 2


def test_the_reported_change_is_the_change(call, dense, images, tmp_path, ort_run):
    out, calibration = tmp_path / "out.onnx", tmp_path / "calibration.npz"
    np.savez(calibration, image=images[:1])
    spec = "threshold{kind=hard,tau=0.5}"
    result = call("sparsify", dense, "--passes", spec, "--calib", calibration, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    change = json.loads(result.stdout)["changes"]["logits"]
    before, after = (ort_run(path, {"image": images[:1]})["logits"] for path in (dense, out))
    assert np.abs(after - before).max() > 0
    expected = np.abs(after - before).max() / np.abs(before).max()
    assert change["max_rel_to_scale"] == pytest.approx(expected, rel=1e-3)


def test_the_batch_stays_symbolic(call, dense, images, tmp_path, ort_run):
    out = tmp_path / "out.onnx"
    assert call("sparsify", dense, "--passes", "threshold{kind=soft,tau=0.1}", "-o", out).exit_code == 0
    assert ort_run(out, {"image": images[:3]})["logits"].shape == (3, 10)


def test_a_change_beyond_max_error_writes_nothing(call, one_line, dense, tmp_path):
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    spec = "threshold{kind=hard,tau=5}"
    result = call("sparsify", dense, "--passes", spec, "--max-error", "0.001", "-o", out)
    assert result.exit_code == 1
    assert "more than --max-error 0.001; nothing was written" in one_line(result)
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nn{n=2,m=4}", "unknown pass 'nn'"),
        ("nm{n=4,m=2}", "1 <= n < m is required"),
        ("nm{n=2,m=4", "'}'"),
    ],
)
def test_a_wrong_pipeline_is_one_line(call, one_line, dense, tmp_path, spec, words):
    result = call("sparsify", dense, "--passes", spec, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 1
    assert words in one_line(result)


def test_an_output_folder_that_is_missing_is_one_line(call, one_line, dense, tmp_path):
    out = tmp_path / "no folder" / "out.onnx"
    result = call("sparsify", dense, "--passes", "threshold{kind=soft,tau=0.1}", "-o", out)
    assert result.exit_code == 1
    assert one_line(result).startswith(f"cannot write {str(out)!r}: ")
    assert one_line(result).endswith("No such file or directory; what was there before is unchanged")


def test_findings_are_listed(call, dense, tmp_path):
    out = tmp_path / "out.onnx"
    result = call("sparsify", dense, "--passes", "threshold{kind=soft,tau=0.1}", "-o", out)
    assert result.stdout.count("\n+ threshold  ") + result.stdout.startswith("+ threshold  ") == 3
    assert "output logits changed by " in result.stdout
    assert f"wrote {out}, " in result.stdout
