"""``sparsec bench``: all numbers there, in a relation that can be true."""

import json

import pytest


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A tenth of the time is enough to see that the numbers are there."""
    from sparsec.compiler.cli import main

    monkeypatch.setitem(main.commands["bench"].callback.__globals__, "SECONDS", 0.3)


def test_beside_onnx_runtime(call, artifact, digits):
    result = call("bench", artifact, "--against", digits, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["threads"] == 1
    assert set(found["engines"]) == {"sparsec", "onnxruntime"}
    for engine in found["engines"].values():
        assert 0 < engine["p50_ms"] <= engine["p90_ms"] <= engine["p99_ms"] < 100
        assert engine["calls"] >= 3
        assert engine["cold_start_ms"] > engine["p50_ms"]
        assert 1e7 < engine["peak_memory_bytes"] < 2e9


def test_text(call, artifact):
    result = call("bench", artifact, "--threads", "2")
    assert result.stdout.splitlines()[0].split()[:4] == ["engine", "p50", "p90", "p99"]
    assert result.stdout.splitlines()[-1].startswith("2 threads, level v")


def test_a_model_that_does_not_fit_is_one_line(call, one_line, artifact, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"nothing")
    result = call("bench", artifact, "--against", path)
    assert result.exit_code == 1
    assert one_line(result).startswith(f"ONNX Runtime cannot run {str(path)!r}: ")
