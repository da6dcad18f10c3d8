"""What is installed is what is in the checkout, and it works from anywhere."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sparsec
import sparsec.runtime

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of what git would publish, so that no build/ is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *options, str(source)], check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def package_folders() -> set[str]:
    """Every folder with an ``__init__.py`` in the mapped folders, as the package it becomes."""
    found = {"sparsec"}
    for top in ("compiler", "passes", "schedules", "runtime"):
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join(["sparsec", *init.parent.relative_to(ROOT).parts]))
    return found


def test_every_package_is_listed(setup):
    assert set(setup["options"]["packages"].split()) == package_folders()


def test_the_version_is_said_once(setup):
    assert setup["metadata"]["version"] == sparsec.__version__ == sparsec.runtime.__version__


def test_everything_that_is_needed_is_pinned(setup):
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").open()
        if "==" in line
    }
    wanted = setup["options"]["install_requires"].split()
    for extra in setup["options.extras_require"].values():
        wanted += extra.split()
    assert {name.lower() for name in wanted} <= pinned


def test_the_wheel_holds_sources_and_metadata(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    c_sources = {f"sparsec/{path.relative_to(ROOT)}" for path in (ROOT / "runtime" / "c").rglob("*.[ch]")}
    assert c_sources and c_sources <= names
    for top in ("compiler", "passes", "schedules", "runtime"):
        sources = {f"sparsec/{path.relative_to(ROOT)}" for path in (ROOT / top).rglob("*.py")}
        assert sources <= names
    templates = {f"sparsec/{path.relative_to(ROOT)}" for path in (ROOT / "compiler/export/files").iterdir()}
    assert "sparsec/compiler/export/files/install.sh" in templates and templates <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"sparsec"}, "a top-level package 'compiler' or 'runtime' would overwrite somebody else's"


def test_an_install_works_from_another_folder(wheel, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, *options, str(wheel)], check=True, capture_output=True)
    # -S hides this environment's own editable install, -P the current folder.
    code = (
        f"import sys, site; sys.path[:0] = [{str(target)!r}, *{site_packages()!r}]\n"
        "import sparsec, sparsec.runtime.container, sparsec.compiler.cli\n"
        "print(sparsec.__file__); print(sparsec.runtime.__file__)\n"
        "sparsec.compiler.cli.main(['--version'])"
    )
    command = [sys.executable, "-S", "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *files, version = done.stdout.splitlines()
    assert all(file.startswith(str(target)) for file in files)
    assert version == f"sparsec {sparsec.__version__}"
    assert (target / "bin" / "sparsec").exists()


def site_packages() -> list[str]:
    """Where numpy and click lie; not on the path under -S."""
    import click
    import numpy

    return sorted({str(Path(module.__file__).parent.parent) for module in (click, numpy)})
