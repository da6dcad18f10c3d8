"""``sparsec sparsify``: ONNX in, ONNX out, judged by ONNX Runtime."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sparsec.compiler.cli.sparsify import METHODS, SPREADS
from sparsec.passes.prune import METHODS as KNOWN
from sparsec.passes.prune.densities import DENSITIES


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


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """256 images that neither training's test set nor this test's accuracy sees."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))[360:616]  # as examples/digits splits
    path = tmp_path_factory.mktemp("calibration") / "images.npz"
    np.savez(path, image=digits.images[order][:, None].astype(np.float32))
    return path


@pytest.fixture
def accuracy(digits, images, ort_run):
    with np.load(digits.with_name("test.npz")) as data:
        labels = data["labels"]
    return lambda path: float(np.mean(ort_run(path, {"image": images})["logits"].argmax(axis=1) == labels))


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "2:4x16", "2:4x32", "50%"])
def test_half_of_the_weights_cost_less_than_a_point(call, dense, calibration, accuracy, tmp_path, pattern):
    out = tmp_path / "out.onnx"
    result = call("sparsify", dense, "--calib", calibration, "--pattern", pattern, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    layers = json.loads(result.stdout)["layers"]
    assert [layer["pattern"] for layer in layers] == [pattern] * 3 or pattern == "2:4x32"
    assert all(layer["error_after"] < layer["error_before"] for layer in layers)
    assert accuracy(out) >= accuracy(dense) - 0.01
    assert out.stat().st_size < dense.stat().st_size + 10_000  # no dense weight stays behind


def test_sweeps_leave_less_error_behind_the_activations(call, dense, calibration, accuracy, tmp_path):
    out, found = tmp_path / "out.onnx", []
    for sweeps in ("1", "3"):
        options = ["--pattern", "1:4", "--method", "wanda", "--sweeps", sweeps]
        result = call("sparsify", dense, "--calib", calibration, *options, "-o", out, "--json")
        assert result.exit_code == 0, result.stderr
        found.append(json.loads(result.stdout))
    first, last = ([layer["error_after"] for layer in made["layers"]] for made in found)
    assert last[0] < 0.8 * first[0] and sum(last) < sum(first)
    assert accuracy(out) >= accuracy(dense) - 0.02
    assert len(onnx.load(out).functions) and out.stat().st_size < dense.stat().st_size + 10_000


def test_without_reconstruction_only_zeros_are_new(call, dense, calibration, tmp_path):
    out = tmp_path / "out.onnx"
    options = ["--pattern", "2:4", "--method", "wanda", "--no-reconstruct", "--no-group"]
    assert call("sparsify", dense, "--calib", calibration, *options, "-o", out).exit_code == 0
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer} for path in (dense, out)
    )
    pruned = [name for name in new if name.removesuffix("_pruned") in old and name not in old]
    weights = [name for name in pruned if new[name].ndim > 1]
    assert len(weights) == 3
    for name in weights:
        kept = new[name] != 0
        np.testing.assert_array_equal(new[name][kept], old[name.removesuffix("_pruned")][kept])


def test_the_table_has_a_line_for_each_layer(call, dense, calibration, tmp_path):
    result = call("sparsify", dense, "--calib", calibration, "--pattern", "1:4x16", "-o", tmp_path / "o.onnx")
    lines = result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    assert [line.split()[1] for line in lines[start + 1 : start + 4]] == ["1:4x16"] * 3
    assert "reconstructed" in lines[start]


def test_an_interrupted_run_resumes_with_the_same_result(call, one_line, dense, calibration, tmp_path):
    command = ["sparsify", dense, "--calib", calibration, "--pattern", "2:4x4", "--state", tmp_path / "state"]
    assert call(*command, "-o", tmp_path / "a.onnx").exit_code == 0
    finished = sorted((tmp_path / "state").glob("*.npz"))
    assert len(finished) == 3
    finished[0].unlink()
    assert call(*command, "-o", tmp_path / "b.onnx").exit_code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    result = call(*command, "--damping", "0.5", "-o", tmp_path / "c.onnx")
    assert result.exit_code == 1
    assert "is of another model, calibration data or options" in one_line(result)


@pytest.fixture
def labelled(calibration, tmp_path):
    """The same images with their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))[360:616]
    with np.load(calibration) as data:
        np.savez(tmp_path / "labelled.npz", image=data["image"], labels=digits.target[order])
    return tmp_path / "labelled.npz"


def test_each_layer_gets_a_pattern_within_the_budget(call, dense, labelled, accuracy, tmp_path):
    out = tmp_path / "out.onnx"
    options = [
        "--pattern",
        "2:4x16,1:4x16",
        "--method",
        "wanda",
        "--max-drop",
        "0.02",
        "--target-size",
        "0.7",
    ]
    result = call("sparsify", dense, "--calib", labelled, *options, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)["plan"]
    assert plan["size"] <= 0.7 and plan["held_out"]["drop"] <= 0.02
    assert set(plan["patterns"].values()) <= {"2:4x16", "1:4x16"} and plan["patterns"]
    assert plan["dense_ms"] > 0 and plan["measured_ms"] > 0
    assert accuracy(out) >= accuracy(dense) - 0.03
    lines = call("sparsify", dense, "--calib", labelled, *options, "-o", out).stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] in KEYS] == KEYS


KEYS = ["chosen", "latency", "weights", "held", "metric"]


def test_nothing_is_written_over_budget(call, one_line, dense, labelled, tmp_path):
    options = ["--pattern", "1:4x16", "--method", "magnitude", "--target-size", "0.1"]
    result = call("sparsify", dense, "--calib", labelled, *options, "-o", tmp_path / "o.onnx")
    assert result.exit_code == 1
    assert "no choice of patterns reaches the budget: the closest has " in one_line(result)
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-drop", "0.1", "--passes", "nm{n=2,m=4}"], "choose among patterns: name --pattern"),
        (["--pattern", "2:4,1:4", "--state", "s"], "do not go with a choice among patterns"),
    ],
)
def test_budgets_that_say_nothing(call, dense, calibration, tmp_path, options, said):
    result = call("sparsify", dense, "--calib", calibration, *options, "-o", tmp_path / "o.onnx")
    assert result.exit_code == 2 and said in result.stderr


def test_a_mask_that_is_no_input(call, one_line, dense, calibration, tmp_path):
    options = ["--pattern", "2:4", "--mask", "padding"]
    result = call("sparsify", dense, "--calib", calibration, *options, "-o", tmp_path / "o.onnx")
    assert result.exit_code == 1
    assert one_line(result) == "--mask padding: must name an input of the model, found image"


def test_the_share_is_spread_over_the_layers(call, dense, calibration, tmp_path):
    kept = {}
    for spread in ("uniform", "lamp", "erk"):
        options = ["--pattern", "95%", "--method", "magnitude", "--spread", spread, "--json"]
        result = call("sparsify", dense, "--calib", calibration, *options, "-o", tmp_path / "o.onnx")
        layers = json.loads(result.stdout)["layers"]
        kept[spread] = [round(layer["kept"], 4) for layer in layers]
        total = sum(layer["kept"] * layer["weights"] for layer in layers)
        assert total / sum(layer["weights"] for layer in layers) == pytest.approx(0.05, abs=0.005)
    assert kept["uniform"] == pytest.approx([0.05] * 3, abs=0.005)
    assert kept["lamp"] != kept["uniform"]
    assert kept["erk"][2] > 0.3  # the smallest layer, by far


def test_a_spread_of_an_nm_pattern_is_refused(call, one_line, dense, calibration, tmp_path):
    options = ["--pattern", "2:4", "--spread", "lamp", "-o", tmp_path / "o.onnx"]
    result = call("sparsify", dense, "--calib", calibration, *options)
    assert result.exit_code == 1
    assert one_line(result) == "--spread lamp: needs an unstructured pattern such as 60%, found 2:4"


def test_the_command_knows_every_method():
    assert tuple(DENSITIES) == SPREADS
    assert tuple(KNOWN) == METHODS


def test_channels_go_from_both_sides(call, dense, calibration, tmp_path):
    out = tmp_path / "out.onnx"
    result = call("sparsify", dense, "--calib", calibration, "--pattern", "channels:50%", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "+ channels  /0/Conv: 16 of 32 channels stay for /2/Conv" in result.stdout
    assert "+ remove-dead-channels  /0/Conv: 16 of 32 output channels" in result.stdout
    shapes = [tuple(t.dims) for t in onnx.load(out).graph.initializer if len(t.dims) == 4]
    assert sorted(shapes) == [(16, 1, 3, 3), (24, 32, 3, 3), (32, 16, 3, 3)]
    assert out.stat().st_size < 0.4 * dense.stat().st_size
