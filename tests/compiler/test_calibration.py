"""Calibration data as batches, the replay of a model part by part, and the folder of finished layers."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from sparsec.compiler.calibration import Folder, Replay, read_batches
from sparsec.compiler.errors import CompileError


def model_of(body, inputs, outputs):
    text = f'<ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


def two_inputs(batch="N"):
    return model_of("y = Add(x, z)", f"float[{batch},3] x, float[{batch},3] z", f"float[{batch},3] y")


def saved(path, **arrays):
    np.savez(path / "data.npz", **arrays)
    return str(path / "data.npz")


def test_an_open_batch_takes_all_samples(tmp_path):
    x = np.arange(21, dtype=np.float32).reshape(7, 3)
    batches = read_batches(saved(tmp_path, x=x, z=-x), two_inputs(), batch=3)
    assert [len(b["x"]) for b in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([b["z"] for b in batches]), -x)


def test_a_fixed_batch_cuts_the_rest_off(tmp_path):
    x = np.zeros((7, 3), np.float32)
    assert [len(b["x"]) for b in read_batches(saved(tmp_path, x=x, z=x), two_inputs(2))] == [2, 2, 2]


X = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, "has no array 'z'; it holds x"),
        ({"x": X, "z": X.astype(np.float64)}, "'z' must be float32"),
        ({"x": X, "z": X[:, :2]}, r"'z' must be float32\[.*, 3\] with samples along the first axis"),
        ({"x": X, "z": X[0]}, r"found float32\[3\]"),
        ({"x": X, "z": X[:2]}, "equally many samples, found {'x': 4, 'z': 2}"),
    ],
)
def test_data_that_does_not_agree_is_refused(tmp_path, arrays, words):
    with pytest.raises(CompileError, match=words):
        read_batches(saved(tmp_path, **arrays), two_inputs())


def test_too_few_samples_for_the_batch(tmp_path):
    with pytest.raises(CompileError, match="has 4 samples; a batch of the model takes 8"):
        read_batches(saved(tmp_path, x=X, z=X), two_inputs(8))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04broken"])
def test_what_is_no_npz_is_one_line(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(CompileError, match="cannot be read as npz: "):
        read_batches(str(tmp_path / "data.npz"), two_inputs())


def test_a_single_array_is_no_npz(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(CompileError, match="cannot be read as npz"):
        read_batches(str(tmp_path / "x.npy"), two_inputs())


def chain():
    return model_of(
        "a = Mul(x, x)  b = Add(a, z)  c = Relu(b)  d = Add(c, a)  y = Neg(d)",
        "float[N,3] x, float[N,3] z",
        "float[N,3] y",
    )


def feeds():
    rng = np.random.default_rng(0)
    return [{n: rng.standard_normal((2, 3)).astype(np.float32) for n in "xz"} for _ in range(3)]


def test_values_are_those_of_the_model(tmp_path):
    data = feeds()
    replay = Replay(chain(), data, tmp_path / "replay")
    for feed, found in zip(data, replay(["b", "z"]), strict=True):
        np.testing.assert_allclose(found["b"], feed["x"] ** 2 + feed["z"], rtol=1e-6)
        np.testing.assert_array_equal(found["z"], feed["z"])
    for feed, found in zip(data, replay(["y", "b"]), strict=True):
        b = feed["x"] ** 2 + feed["z"]
        np.testing.assert_allclose(found["y"], -(np.maximum(b, 0) + feed["x"] ** 2), rtol=1e-6)
        np.testing.assert_allclose(found["b"], b, rtol=1e-6)


def test_a_change_behind_what_is_kept_is_seen_and_one_before_it_is_not(tmp_path):
    model, data = chain(), feeds()
    replay = Replay(model, data, tmp_path / "replay")
    before = list(replay(["a", "b"]))
    for node in model.graph:
        if node.op_type in ("Mul", "Relu"):
            node.op_type = {"Mul": "Sub", "Relu": "Abs"}[node.op_type]
    for found, kept in zip(replay(["d"]), before, strict=True):
        np.testing.assert_allclose(found["d"], np.abs(kept["b"]) + kept["a"], rtol=1e-6)


def test_what_nothing_reads_any_more_is_dropped(tmp_path):
    replay = Replay(chain(), feeds(), tmp_path / "replay")
    list(replay(["b"]))
    assert set(replay.kept) == {"b"}
    list(replay(["d"]))
    assert set(replay.kept) == {"d"}
    assert len(list((tmp_path / "replay").iterdir())) == 3


def test_a_model_that_cannot_run_is_one_line(tmp_path):
    model = model_of("y = Nothing(x)", "float[2,3] x", "float[2,3] y")
    with pytest.raises(CompileError, match="ONNX Runtime cannot run the model for calibration: "):
        list(Replay(model, [{"x": X[:2]}], tmp_path / "replay")(["y"]))


def test_a_folder_remembers_and_refuses_another_identity(tmp_path):
    folder = Folder(tmp_path / "state", {"model": "a"})
    assert folder.recall("layer/1") is None
    folder.remember("layer/1", np.eye(2), np.ones(2), [{"kept": 0.5}])
    weight, bias, reports = Folder(tmp_path / "state", {"model": "a"}).recall("layer/1")
    assert weight.tolist() == [[1, 0], [0, 1]] and bias.tolist() == [1, 1] and reports == [{"kept": 0.5}]
    with pytest.raises(CompileError, match="is of another model, calibration data or options"):
        Folder(tmp_path / "state", {"model": "b"})
