"""``sparsec doctor`` names what is missing and what that disables."""

import json
from importlib import metadata

import pytest

from sparsec.runtime import build, cpu


def test_this_machine_is_well(call):
    result = call("doctor")
    assert result.exit_code == 0
    assert result.stdout.endswith("This machine can compile and run.\n")


def test_json_has_every_check(call):
    checks = json.loads(call("doctor", "--json").stdout)
    assert [c["name"] for c in checks[:3]] == ["python", "numpy", "apache-tvm"]
    assert {"linker", "cpu", "memory"} <= {c["name"] for c in checks}
    assert all(c["ok"] or c["optional"] for c in checks)


def test_a_missing_package_disables(call, monkeypatch):
    real = metadata.version

    def version(name):
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    text = call("doctor").stdout
    assert "--  onnxruntime     not installed" in text
    assert "disabled without it: compile's check, verify --model, bench --against" in text
    assert text.endswith("1 part missing.\n")


def test_a_missing_compiler_disables_compile(call, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    found = {c["name"]: c for c in json.loads(call("doctor", "--json").stdout)}
    assert not found["linker"]["ok"]
    assert "no-such-compiler" in found["linker"]["found"]


def test_a_broken_compiler_is_found_by_trying_it(call, monkeypatch):
    monkeypatch.setenv("CC", "false")
    found = {c["name"]: c for c in json.loads(call("doctor", "--json").stdout)}
    assert not found["linker"]["ok"]
    assert build.compiler() == ["false"]


@pytest.mark.parametrize(("have", "ok"), [(cpu.V4, True), (cpu.V3, True), (cpu.V2, False), ((), False)])
def test_the_level_decides_what_runs(call, monkeypatch, have, ok):
    monkeypatch.setattr(cpu, "features", lambda: frozenset(have))
    found = {c["name"]: c for c in json.loads(call("doctor", "--json").stdout)}
    assert found["cpu"]["ok"] is ok
