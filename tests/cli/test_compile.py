"""``sparsec compile`` from the outside: what it prints, what it refuses, what an interruption leaves."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

NATIVE = ("--target", "native")


@pytest.fixture
def old(tmp_path):
    """A file that is in the place of the artifact to come."""
    path = tmp_path / "out.sparsec"
    path.write_bytes(b"what was there before")
    return path


def unchanged(path) -> bool:
    """Still the old content, and nothing beside it but what the test put there."""
    left = [p.name for p in path.parent.iterdir() if "sparsec" in p.name and p != path]
    return path.read_bytes() == b"what was there before" and not left


def save(path, nodes, inputs, outputs):
    ports = [[helper.make_tensor_value_info(*port) for port in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ports)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def relu(path, dims):
    x, y = ("x", TensorProto.FLOAT, dims), ("y", TensorProto.FLOAT, dims)
    return save(path, [helper.make_node("Relu", ["x"], ["y"], "r")], [x], [y])


def test_the_closing_table(call, digits, tmp_path):
    out = tmp_path / "digits.sparsec"
    result = call("compile", digits, "-o", out, *NATIVE)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["layers", "op", "pattern", "kernel", "dense", "packed"]
    assert any("2:4x16" in line for line in lines)
    assert any(
        line.startswith("error    ") and "of logits's scale, against ONNX Runtime" in line for line in lines
    )
    assert lines[-1].startswith(f"wrote    {out}, ")
    assert "  read the model\n" in result.stderr
    assert out.stat().st_size > 1000


def test_the_precision_of_each_layer_and_of_none(call, tmp_path):
    """A network whose one product takes weights of 8 bits, and one in which nothing does."""
    large, small = (helper.make_node("MatMul", [x, w], [y]) for x, w, y in (("x", "w", "h"), ("h", "v", "y")))
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (96, 80)), ("v", (80, 7)))
    ]
    ports = (
        ("x", TensorProto.FLOAT, [3, 96]),
        ("h", TensorProto.FLOAT, [3, 80]),
        ("y", TensorProto.FLOAT, [3, 7]),
    )
    x, h, y = (helper.make_tensor_value_info(*port) for port in ports)
    for nodes, given, last, used in (([large, small], x, y, weights), ([small], h, y, weights[1:])):
        path = tmp_path / "net.onnx"
        graph = helper.make_graph(nodes, "g", [given], [last], used)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        result = call("compile", path, "-o", tmp_path / "o", "--precision", "int8-weights", *NATIVE)
        assert result.exit_code == 0, result.stderr
        none = "no layer computes in int8-weights; `sparsec explain --precision int8-weights` says why"
        assert (none in result.stdout) == (len(nodes) == 1)
        assert ("  precision  " in result.stdout) == (len(nodes) == 2)


def test_the_report_as_json(call, digits, tmp_path):
    out = tmp_path / "digits.sparsec"
    result = call("compile", digits, "-o", out, *NATIVE, "--json")
    report = json.loads(result.stdout)
    assert report["size"] == out.stat().st_size
    found = report["receipt"]["max_error"]["logits"]
    assert found["within"] and found["max_rel_to_scale"] < 1e-5
    patterns = {layer["pattern"] for layer in report["layers"]}
    assert "2:4x16" in patterns


def test_the_same_input_gives_the_same_bytes(call, digits, tmp_path):
    """With the choices replayed, since a measurement may fall differently."""
    first, second, choices = tmp_path / "a.sparsec", tmp_path / "b.sparsec", tmp_path / "choices.json"
    report = json.loads(call("compile", digits, "-o", first, *NATIVE, "--json").stdout)
    choices.write_text(json.dumps(report["choices"]))
    assert call("compile", digits, "-o", second, *NATIVE, "--choices", choices).exit_code == 0
    assert first.read_bytes() == second.read_bytes()


def test_the_default_name_and_strange_names(sparsec, digits, tmp_path):
    """Spaces, line breaks and a leading dash in names, in an otherwise empty folder."""
    shutil.copy(digits, tmp_path / "my\nmodel =1.onnx")
    done = sparsec("compile", "my\nmodel =1.onnx", *NATIVE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my\nmodel =1.sparsec").is_file()
    assert done.stdout.splitlines()[-1].startswith("wrote    my\\nmodel =1.sparsec, ")
    shutil.copy(digits, tmp_path / "-m.onnx")
    assert sparsec("compile", *NATIVE, "--", "-m.onnx").returncode == 0
    assert (tmp_path / "-m.sparsec").is_file()


def test_the_dump_has_every_stage(call, digits, tmp_path):
    dump = tmp_path / "dump"
    assert call("compile", digits, "-o", tmp_path / "o.sparsec", *NATIVE, "--dump-dir", dump).exit_code == 0
    names = sorted(path.name for path in dump.iterdir())
    assert names[0] == "01-ingested.onnx"
    assert [name[:2] for name in names] == [f"{i:02d}" for i in range(1, len(names) + 1)]


def test_a_batch_that_was_not_given_becomes_1_and_is_said(call, digits, tmp_path):
    result = call("compile", digits, "-o", tmp_path / "o.sparsec", *NATIVE)
    assert "batch" in result.stderr


def test_a_batch_that_was_given(call, digits, tmp_path):
    from sparsec.runtime import load

    out = tmp_path / "o.sparsec"
    assert call("compile", digits, "-o", out, *NATIVE, "--dim", "batch=3").exit_code == 0
    with load(out) as model:
        assert model.inputs[0].shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00" * 64, "x.onnx"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x08\x07\x12\x04test\x3a", "x.onnx"),
    ],
)
def test_what_is_no_model_is_one_line(call, one_line, old, tmp_path, content, words):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    result = call("compile", path, "-o", old)
    assert result.exit_code == 1
    assert words in one_line(result)
    assert unchanged(old)


def test_a_cut_off_model_is_one_line(call, one_line, old, digits, tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(digits.read_bytes()[:100_000])
    result = call("compile", path, "-o", old)
    assert result.exit_code == 1
    assert "cut.onnx" in one_line(result)
    assert unchanged(old)


def test_all_unsupported_nodes_are_listed_at_once(call, one_line, old, tmp_path):
    x, y = ("x", TensorProto.FLOAT, [2]), ("y", TensorProto.FLOAT, [2])
    nodes = [
        helper.make_node("Foo", ["x"], ["h"], "first", domain="my.domain"),
        helper.make_node("Bar", ["h"], ["y"], "second", domain="my.domain"),
    ]
    path = save(tmp_path / "x.onnx", nodes, [x], [y])
    result = call("compile", path, "-o", old)
    assert result.exit_code == 1
    line = one_line(result)
    assert all(word in line for word in ("Foo", "first", "Bar", "second", "my.domain"))
    assert unchanged(old)


def test_a_dim_that_is_missing_is_asked_for_by_name(call, one_line, old, tmp_path):
    path = relu(tmp_path / "x.onnx", [1, "length"])
    result = call("compile", path, "-o", old)
    assert result.exit_code == 1
    assert "--dim length=" in one_line(result)
    assert unchanged(old)


def test_a_wrong_shape_is_one_line(call, one_line, old, digits):
    result = call("compile", digits, "--shape", "image=1x1x8x9", "-o", old)
    assert result.exit_code == 1
    assert "image" in one_line(result)
    assert unchanged(old)


def test_wrong_calibration_data_is_one_line(call, one_line, old, digits, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, picture=np.zeros((1, 1, 8, 8), np.float32))
    result = call("compile", digits, "--calib", path, "-o", old)
    assert result.exit_code == 1
    assert "has no array 'image'; it holds picture" in one_line(result)
    path.write_bytes(b"no npz")
    assert call("compile", digits, "--calib", path, "-o", old).exit_code == 1
    assert unchanged(old)


def test_an_unknown_pass_is_one_line(call, one_line, old, digits):
    result = call("compile", digits, "--passes", "sparsemx", "-o", old)
    assert result.exit_code == 1
    assert "Did you mean 'sparsemax'?" in one_line(result)
    assert unchanged(old)


def test_a_folder_that_is_missing_is_one_line(call, one_line, digits, tmp_path):
    result = call("compile", digits, *NATIVE, "-o", tmp_path / "no" / "o.sparsec")
    assert result.exit_code == 1
    assert "cannot write" in one_line(result)


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(sparsec, digits, tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    out = folder / "o.sparsec"
    out.write_bytes(b"what was there before")
    folder.chmod(0o555)
    command = [sys.executable, "-P", "-m", "sparsec", "compile", str(digits), *NATIVE, "-o", str(out)]
    if os.getuid() == 0:  # the right to write anywhere is taken away
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr.splitlines()[-1]
    assert unchanged(out)


def test_a_full_disk_is_one_line_and_keeps_the_old_file(digits, old, tmp_path):
    """RLIMIT_FSIZE stands for the full disk: the artifact is the only large file that is written."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from sparsec.compiler.package import write_artifact;"
        "from sparsec.runtime.errors import SparsecError\n"
        "try: write_artifact(sys.argv[1], {}, {'weights.bin': bytes(100000)})\n"
        "except SparsecError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(old)], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1, done.stderr
    assert "cannot write" in done.stdout and "what was there before is unchanged" in done.stdout
    assert unchanged(old)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0.3, 2.5])
def test_an_interrupted_compile_keeps_the_old_file(digits, old, how, delay):
    command = [sys.executable, "-P", "-m", "sparsec", "compile", str(digits), "-o", str(old)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores it, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(delay)
    if process.poll() is not None:
        pytest.skip("this machine compiled it before it could be interrupted")
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    assert unchanged(old)
    if how == signal.SIGINT and delay > 1:
        assert process.returncode == 130
        assert stderr.splitlines()[-1] == "sparsec: interrupted"
    assert "Traceback" not in stderr or delay < 1  # Python's own start-up may be hit


def test_a_wrong_artifact_is_never_published(call, one_line, old, digits, monkeypatch):
    """The check itself: a reference that differs stops the publication."""
    from sparsec.compiler import reference
    from sparsec.compiler.errors import CompileError
    from sparsec.compiler.pipeline import compile_model
    from sparsec.compiler.request import CompileRequest

    true = reference.run_reference

    def lie(*arguments, **options):
        values = true(*arguments, **options)
        return {name: value + 1e-3 * np.abs(value).max() for name, value in values.items()}

    monkeypatch.setattr(reference, "run_reference", lie)
    with pytest.raises(
        CompileError,
        match="output 'logits' of the kernels for v. differs from ONNX Runtime by .*nothing was published",
    ):
        compile_model(CompileRequest(str(digits), str(old), target="native"))
    assert unchanged(old)


def test_the_source_is_hashed(call, digits, tmp_path):
    out = tmp_path / "o.sparsec"
    assert call("compile", digits, *NATIVE, "-o", out).exit_code == 0
    found = json.loads(call("inspect", out, "--json").stdout)
    assert found["source_sha256"] == hashlib.sha256(digits.read_bytes()).hexdigest()
