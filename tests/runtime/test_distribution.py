"""The distribution sparsec-runtime: one wheel without compiled parts, alone with NumPy, or beside sparsec."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import sparsec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("runtime")
    source = folder / "source"
    shutil.copytree(
        ROOT / "runtime", source, ignore=shutil.ignore_patterns("build", "__pycache__", "*.egg-info")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *options, str(source)], check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment that holds this wheel and NumPy, nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    numpy = Path(np.__file__).parent
    for part in (numpy, numpy.with_name("numpy.libs")):
        if part.exists():
            (site / part.name).symlink_to(part)
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    return folder / "bin" / "python"


def test_one_wheel_for_every_machine(wheel):
    version = sparsec.__version__
    assert wheel.name == f"sparsec_runtime-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        metadata = opened.read(f"sparsec_runtime-{version}.dist-info/METADATA").decode()
    found = [
        p.relative_to(ROOT / "runtime")
        for end in ("*.py", "c/**/*.[ch]*")
        for p in (ROOT / "runtime").glob(end)
    ]
    assert {name for name in names if ".dist-info/" not in name} == {f"sparsec_runtime/{p}" for p in found}
    assert [line for line in metadata.splitlines() if line.startswith("Requires-Dist")] == [
        "Requires-Dist: numpy"
    ]


ALONE = """
import importlib.util, sys
import numpy as np
import sparsec_runtime as rt
assert all(importlib.util.find_spec(name) is None for name in ("sparsec", "tvm", "onnx", "pip"))
path, inputs, wanted = sys.argv[1:]
with rt.load(path) as model, np.load(inputs) as given, np.load(wanted) as expected:
    given = dict(given)
    for results in (model(given), model.context()(given), model.submit(given).result()):
        assert all((results[name] == expected[name]).all() for name in expected)
    assert len(model.profile(given)) == 3
try:
    rt.load(sys.executable)
except rt.FormatError as e:
    print(rt.__version__, type(e).__module__)
"""


def test_a_model_runs_without_the_compiler(tiny, bare, tmp_path):
    inputs = tiny.inputs(2)
    np.savez(tmp_path / "in.npz", **inputs)
    np.savez(tmp_path / "out.npz", **sparsec.load(tiny.path)(inputs))
    files = [tiny.path, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run([bare, "-I", "-c", ALONE, *files], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{sparsec.__version__} sparsec_runtime.errors\n"), (
        done.stderr
    )


BESIDE = """
import sys
sys.path.append(sys.argv[1])
import sparsec, sparsec_runtime
models = [package.load(sys.argv[2]) for package in (sparsec, sparsec_runtime)]
assert type(models[0]) is sparsec.runtime.Model and type(models[1]) is sparsec_runtime.Model
assert not {m.__file__ for n, m in sys.modules.items() if n.startswith("sparsec_runtime")} & {
    m.__file__ for n, m in sys.modules.items() if n.startswith("sparsec.")}
"""


def test_both_distributions_side_by_side(tiny, bare, tmp_path):
    (site,) = bare.parents[1].glob("lib/python*/site-packages")
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, site, tiny.path], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
