"""``sparsec run``: numbers as ONNX Runtime has them, and one line for everything that does not fit."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture
def image(tmp_path):
    value = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    path = tmp_path / "an image.npy"
    np.save(path, value)
    return path


def test_outputs_are_those_of_onnx_runtime(call, artifact, digits, image, tmp_path, ort_run):
    folder = tmp_path / "out put"
    result = call("run", artifact, "--input", f"image={image}", "--output-dir", folder, "--json")
    assert result.exit_code == 0, result.stderr
    (said,) = json.loads(result.stdout)
    assert said == {
        "name": "logits",
        "dtype": "float32",
        "shape": [1, 10],
        "file": str(folder / "logits.npy"),
    }
    found, expected = np.load(folder / "logits.npy"), ort_run(digits, {"image": np.load(image)})["logits"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-6


def test_text_shows_the_first_values(call, artifact, image):
    result = call("run", artifact, "--input", f"image={image}")
    assert result.stdout.splitlines()[0].split() == ["output", "dtype", "shape", "values"]
    assert result.stdout.splitlines()[2].startswith("logits  float32  1x10   ")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "image",
            np.zeros((1, 1, 8, 9), np.float32),
            "wanted float32[1, 1, 8, 8], found float32[1, 1, 8, 9]",
        ),
        ("image", np.zeros((1, 1, 8, 8)), "wanted float32[1, 1, 8, 8], found float64[1, 1, 8, 8]"),
        ("picture", np.zeros((1, 1, 8, 8), np.float32), "no input is called 'picture'"),
    ],
)
def test_an_input_that_does_not_fit_is_one_line(call, one_line, artifact, tmp_path, name, value, words):
    path = tmp_path / "x.npy"
    np.save(path, value)
    result = call("run", artifact, "--input", f"{name}={path}")
    assert result.exit_code == 1
    assert words in one_line(result)
    assert result.stdout == ""


def test_a_missing_input_is_one_line(call, one_line, artifact):
    result = call("run", artifact)
    assert result.exit_code == 1
    assert "input 'image' is missing: wanted float32[1, 1, 8, 8]" in one_line(result)


def test_an_input_given_twice_is_wrong_usage(call, artifact, image):
    result = call("run", artifact, "--input", f"image={image}", "--input", f"image={image}")
    assert result.exit_code == 2
    assert "--input 'image' is given twice" in result.stderr


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_one_line(call, one_line, artifact, tmp_path, content):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    result = call("run", artifact, "--input", f"image={path}")
    assert result.exit_code == 1
    assert "is not a .npy file of numbers" in one_line(result)


def test_pickles_are_not_opened(call, one_line, artifact, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object))
    result = call("run", artifact, "--input", f"image={path}")
    assert result.exit_code == 1
    assert "is not a .npy file of numbers" in one_line(result)


def test_several_arrays_are_refused(call, one_line, artifact, tmp_path):
    path = tmp_path / "x.npy"
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "x.npz").rename(path)
    result = call("run", artifact, "--input", f"image={path}")
    assert result.exit_code == 1
    assert "holds several arrays" in one_line(result)


@pytest.mark.parametrize("length", [0, 3, 1000, 5000, -1, -30])
def test_a_truncated_artifact_is_one_line(call, one_line, artifact, image, tmp_path, length):
    path = tmp_path / "cut off.sparsec"
    path.write_bytes(artifact.read_bytes()[:length])
    for command in (["run", path, "--input", f"image={image}"], ["verify", path], ["inspect", path]):
        result = call(*command)
        assert result.exit_code == 1, command
        assert one_line(result)


def test_names_with_line_breaks(call, artifact, image, tmp_path):
    path = tmp_path / "a\nb c.sparsec"
    shutil.copy(artifact, path)
    assert call("run", path, "--input", f"image={image}").exit_code == 0
    result = call("run", tmp_path / "a\nno.sparsec", "--input", f"image={image}")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "a\\nno.sparsec" in result.stderr


def test_a_full_disk_is_one_line(artifact, image, tmp_path):
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64));"
        "from sparsec.compiler.cli import main; main(sys.argv[1:], prog_name='sparsec')"
    )
    command = ["run", str(artifact), "--input", f"image={image}", "--output-dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-P", "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("sparsec: ") and done.stderr.count("\n") == 1


def test_run_and_verify_need_neither_onnx_nor_tvm(artifact, image):
    code = (
        "import sys\n"
        "for name in ('onnx', 'onnx_ir', 'onnxruntime', 'tvm', 'torch'): sys.modules[name] = None\n"
        "from sparsec.compiler.cli import main\n"
        "main(sys.argv[1:], prog_name='sparsec')"
    )
    for command in (["run", str(artifact), "--input", f"image={image}"], ["verify", str(artifact)]):
        arguments = [sys.executable, "-P", "-c", code, *command]
        done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
