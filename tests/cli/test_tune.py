"""``sparsec tune``: a table of what was measured, and databases that come together."""

import json

import pytest

from sparsec.compiler.tuning.database import Database


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))


def test_times_reach_the_database_that_compile_reads(call, digits, tmp_path):
    result = call("tune", digits, "--target", "native")
    assert result.exit_code == 0, result.stderr
    header, _, *rows, last = result.stdout.splitlines()
    assert header.split()[:4] == ["level", "layers", "op", "shape"] and header.split()[-1] == "gain"
    assert rows and all(row.split()[-1].endswith("x") for row in rows)
    assert last == f"wrote {tmp_path / 'cache' / 'tuning.db'}"
    assert (tmp_path / "cache" / "tuning.db").is_file()


def test_another_database_and_merging(call, digits, tmp_path):
    other = tmp_path / "device.db"
    result = call("tune", digits, "--target", "native", "--database", other, "--json")
    found = json.loads(result.stdout)
    assert found["database"] == str(other) and found["merged"] == {}
    assert not (tmp_path / "cache").exists()
    result = call("tune", "--merge", other)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"merged {len(found['records'])} structures of {other}"
    assert list(Database()._rows()) == list(Database(other)._rows())
    again = json.loads(call("tune", digits, "--target", "native", "--json").stdout)
    assert not any(record["new"] for record in again["records"])


def test_nothing_to_do(call):
    result = call("tune")
    assert result.exit_code == 2
    assert "name a MODEL.onnx to tune, or databases to --merge" in result.stderr


def test_merge_of_something_else(call, digits, tmp_path):
    result = call("tune", "--merge", digits)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("is not a tuning database: file is not a database")
    assert not (tmp_path / "cache").exists()
