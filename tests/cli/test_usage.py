"""Wrong usage: exit status 2, or 1 with one line where a file is at fault; never a traceback."""

import subprocess
import sys

import pytest

from sparsec.compiler.cli import COMMANDS, options
from sparsec.compiler.request import GPUS, TARGETS


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help(call, command):
    result = call(command.name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: sparsec {command.name} ")


def test_no_command_shows_the_list_in_its_own_order(call):
    result = call("--help")
    places = [result.stdout.index(f"\n  {command.name} ") for command in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compil", "x.onnx"], "No such command 'compil'. Did you mean 'compile'?"),
        (["compile"], "Missing argument 'MODEL'"),
        (["compile", "x.onnx", "--choises", "f"], "No such option '--choises'. Did you mean '--choices'?"),
        (["compile", "x.onnx", "--target", "vax"], "'vax' is not one of 'x86', 'x86:v2'"),
        (["compile", "x.onnx", "--sparsity", "some"], "'some' is not one of 'auto', 'require', 'off'"),
        (
            ["compile", "x.onnx", "--shape", "x"],
            "write the input's name and its sizes, as in image=1x3x224x224",
        ),
        (["compile", "x.onnx", "--shape", "x=1x0"], "'x=1x0': write the input's name"),
        (
            ["compile", "x.onnx", "--dim", "batch=-1"],
            "write the dimension's name and its size, as in batch=1",
        ),
        (["run", "x.sparsec", "--input", "x"], "'x': write the input's name and a file, as in x=x.npy"),
        (["bench", "x.sparsec", "--threads", "0"], "0 is not in the range"),
        (["sparsify", "x.onnx", "-o", "y.onnx"], "Missing option '--passes' or '--pattern'"),
        (["sparsify", "x.onnx", "--pattern", "2:4", "-o", "y.onnx"], "--pattern needs --calib DATA.npz"),
        (["sparsify", "x.onnx", "--pattern", "2:4", "--method", "luck"], "'luck' is not one of 'random'"),
        (
            ["sparsify", "x.onnx", "--passes", "nm", "-o", "y", "--max-error", "-1"],
            "-1.0 is not in the range",
        ),
        (["inspect", "x.onnx", "--json", "--html"], "--json and --html exclude each other"),
    ],
)
def test_wrong_usage_exits_with_2(call, arguments, words):
    result = call(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_a_name_given_twice_is_wrong_usage(call, digits):
    result = call("compile", digits, "--dim", "batch=1", "--dim", "batch=2")
    assert result.exit_code == 2
    assert "--dim 'batch' is given twice" in result.stderr


@pytest.mark.parametrize("name", ["no.onnx", "no file.onnx", "no\nfile.onnx"])
@pytest.mark.parametrize("command", [["compile"], ["explain"], ["inspect"]])
def test_a_missing_model_is_one_line(call, one_line, command, name):
    result = call(*command, name)
    assert result.exit_code == 1
    assert one_line(result).endswith(f" {name!r} does not exist")


def test_a_folder_is_no_model(call, one_line, tmp_path):
    result = call("compile", tmp_path)
    assert result.exit_code == 1
    assert one_line(result) == f"model {str(tmp_path)!r} is not a regular file"


def test_a_missing_artifact_is_one_line(call, one_line):
    for command in ("run", "verify", "bench"):
        result = call(command, "no.sparsec")
        assert result.exit_code == 1
        assert "'no.sparsec'" in one_line(result)


def test_shapes_dims_and_files_are_read():
    assert options.Shape().convert("a=b=1x3x224", None, None) == ("a=b", (1, 3, 224))
    assert options.Dim().convert("batch=8", None, None) == ("batch", 8)
    name, path = options.NamedFile().convert("x=a=b.npy", None, None)
    assert (name, str(path)) == ("x", "a=b.npy")


def test_the_targets_are_those_of_the_compiler():
    gpus = {"cuda", *(f"cuda:{name}" for name in GPUS)}
    assert set(options.TARGETS) == {*TARGETS, *gpus, "native"}


def test_help_loads_nothing_heavy():
    """What makes help instant: no package but click is imported."""
    program = (
        "import sys; from sparsec.compiler.cli import main; main(['--help'], standalone_mode=False); "
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'tvm', 'torch'}; "
        "print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert "compile" in done.stdout and done.stderr.strip() == ""


def test_interrupting_is_one_line_and_130(call, monkeypatch):
    from sparsec.compiler.cli import doctor

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setitem(doctor.callback.__globals__, "python", interrupt)
    result = call("doctor")
    assert result.exit_code == 130
    assert result.stderr == "sparsec: interrupted\n"


def test_a_full_disk_on_stdout_is_one_line(sparsec):
    with open("/dev/full", "w") as full:
        done = sparsec("passes", stdout=full, stderr=-1, capture_output=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_quiet(tmp_path):
    import subprocess
    import sys

    command = f"{sys.executable} -m sparsec doctor | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("ok  python")
    assert "Traceback" not in done.stderr
