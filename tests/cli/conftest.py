"""Fixtures for the command line: calls in this process, calls in a process of their own, one artifact."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sparsec.compiler import worker
from sparsec.compiler.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent


def work_here(task, request, *, on_progress, **limits):
    """What the worker does, without the process: importing TVM once serves all tests.

    Requests and results cross as JSON all the same.  The process itself has tests of its own, and the
    fixture ``sparsec`` uses it.
    """

    def log(stage, **facts):
        on_progress({"progress": stage, **facts})

    module, _, function = worker.TASKS[task].partition(":")
    result = getattr(importlib.import_module(module), function)(json.loads(json.dumps(request)), log)
    return json.loads(json.dumps(result))


@pytest.fixture
def call(monkeypatch):
    """``call("run", path)`` in this process -> result with ``exit_code``, ``stdout``, ``stderr``."""
    monkeypatch.setattr(worker, "run_in_worker", work_here)

    def invoke(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="sparsec")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback is a bug
        return result

    return invoke


@pytest.fixture
def sparsec(tmp_path):
    """``sparsec("run", path)`` as a shell would start it, in an empty folder; a CompletedProcess."""

    def start(*arguments, cwd=tmp_path, environment=None, **options):
        command = [sys.executable, "-P", "-m", "sparsec", *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 300} | options
        return subprocess.run(command, cwd=cwd, env=os.environ | (environment or {}), **options)

    return start


@pytest.fixture
def one_line():
    """``one_line(result)``: the one line on stderr that is no progress; asserts that there is just one."""

    def find(result) -> str:
        said = [line for line in result.stderr.splitlines() if not line.startswith("  ")]
        assert len(said) == 1, result.stderr
        assert said[0].startswith("sparsec: ")
        return said[0].removeprefix("sparsec: ")

    return find


@pytest.fixture(scope="session")
def digits() -> Path:
    """The demo's 2:4 network as ONNX."""
    return ROOT / "examples" / "digits" / "sparse.onnx"


@pytest.fixture(scope="session")
def artifact(digits, tmp_path_factory) -> Path:
    """``digits`` compiled for this machine; not to be changed."""
    path = tmp_path_factory.mktemp("artifact") / "digits.sparsec"
    command = [sys.executable, "-m", "sparsec", "compile", str(digits), "-o", str(path), "--target", "native"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return path
