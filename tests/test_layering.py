"""Who may import whom: passes, schedules and runtime know nothing of each other, compiler joins them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Sub-folders that may import what their layer must not.
ALLOWED = {"passes/train": {"torch"}}
# Folder -> top-level names and siblings that its files must not import, at any depth of nesting.
FORBIDDEN = {
    "passes": {"tvm", "torch", "sparsec.compiler", "sparsec.schedules", "sparsec.runtime"},
    "schedules": {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch"}
    | {"sparsec.compiler", "sparsec.passes", "sparsec.runtime"},
    "runtime": {"sparsec.compiler", "sparsec.passes", "sparsec.schedules"},
    "compiler": {"torch"},
}
FILES = [path for folder in FORBIDDEN for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that the file imports, relative ones resolved."""
    package = ["sparsec", *path.relative_to(ROOT).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def within(name: str, forbidden: str) -> bool:
    return name == forbidden or name.startswith(forbidden + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_layer_may(path):
    found = imports(path)
    layer = path.relative_to(ROOT).parts[0]
    forbidden = FORBIDDEN[layer] - ALLOWED.get(path.parent.relative_to(ROOT).as_posix(), set())
    assert not [name for name in found for no in forbidden if within(name, no)]
    siblings = [name for name in found if name.split(".")[0] in FORBIDDEN]
    assert not siblings, "import sparsec.<name>: the bare name gives every class twice"
    if layer == "runtime":
        allowed = set(sys.stdlib_module_names) | {"numpy", "sparsec"}
        assert {name.split(".")[0] for name in found if name} <= allowed


def test_relative_imports_are_resolved(tmp_path, monkeypatch):
    """The check would be blind if ``from ..schedules import x`` were not seen as sparsec.schedules."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "passes" / "ops").mkdir(parents=True)
    file = tmp_path / "passes" / "ops" / "bad.py"
    file.write_text("def f():\n    from ...schedules import tir\n")
    assert "sparsec.schedules" in imports(file)


def python(code: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_the_runtime_needs_numpy_alone():
    code = (
        "import sys; import numpy; before = set(sys.modules); import sparsec.runtime;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    allowed = set(sys.stdlib_module_names) | {"sparsec", "numpy"}
    assert set(done.stdout.split()) <= allowed


@pytest.mark.parametrize("name", FORBIDDEN)
def test_bare_names_are_refused(name):
    done = python(f"import {name}")
    assert done.returncode == 1
    assert f"ImportError: import sparsec.{name}, not {name}" in done.stderr


def test_help_needs_neither_onnx_nor_tvm_nor_numpy():
    code = (
        "import sys\n"
        "from sparsec.compiler.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'tvm', 'torch', 'onnxruntime'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = python(code)
    assert done.stderr.strip() == "set()"


def test_training_without_torch_says_what_to_install():
    done = python("import sys; sys.modules['torch'] = None; import sparsec; sparsec.train")
    assert (
        done.stderr.splitlines()[-1] == "ImportError: sparsec.train needs torch: pip install 'sparsec[train]'"
    )
