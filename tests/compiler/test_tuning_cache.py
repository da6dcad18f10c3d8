"""The tuning cache: lost or damaged it costs a measurement, never a compilation."""

import json
import subprocess
import sys
import textwrap

import pytest

from sparsec.compiler import package
from sparsec.compiler.tuning_cache import TuningCache, cache_folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_round_trip(folder):
    cache = TuningCache("choices")
    assert cache.read("machine") == {}
    cache.add("machine", {"a": (1.0, 2.0)})
    cache.add("machine", {"b": (3.0, 4.0)})
    cache.add("other", {"a": (5.0, 6.0)})
    assert TuningCache("choices").read("machine") == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert TuningCache("choices").read("other") == {"a": [5.0, 6.0]}
    assert [path.name for path in folder.iterdir()] == ["choices.json"]


def test_new_measurement_replaces():
    cache = TuningCache("choices")
    cache.add("machine", {"a": (1.0, 2.0)})
    cache.add("machine", {"a": (3.0, 4.0)})
    assert cache.read("machine") == {"a": [3.0, 4.0]}


def test_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SPARSEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sparsec"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sparsec"


DAMAGED = {
    "empty": b"",
    "cut off": b'{"machine": {"a": [1.0, ',
    "no text": b"\xff\xfe\x00\x01",
    "a list": b"[1, 2]",
    "null": b"null",
    "flat": b'{"machine": 3}',
    "no pair": b'{"machine": {"a": 1.0}}',
    "texts": b'{"machine": {"a": ["1", "2"]}}',
    "one number": b'{"machine": {"a": [1.0]}}',
    "NaN": b'{"machine": {"a": [NaN, 1.0]}}',
    "negative": b'{"machine": {"a": [-1.0, 1.0]}}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_is_empty(case, folder):
    folder.mkdir()
    (folder / "choices.json").write_bytes(DAMAGED[case])
    cache = TuningCache("choices")
    assert cache.read("machine") == {}
    cache.add("machine", {"a": (1.0, 2.0)})
    assert json.loads((folder / "choices.json").read_text()) == {"machine": {"a": [1.0, 2.0]}}


def test_folder_that_cannot_be_made(folder):
    folder.write_text("a file stands here")
    cache = TuningCache("choices")
    cache.add("machine", {"a": (1.0, 2.0)})
    assert cache.read("machine") == {}
    assert folder.read_text() == "a file stands here"


def test_folder_in_the_place_of_the_file(folder):
    (folder / "choices.json").mkdir(parents=True)
    cache = TuningCache("choices")
    cache.add("machine", {"a": (1.0, 2.0)})
    assert cache.read("machine") == {}
    assert [path.name for path in folder.iterdir()] == ["choices.json"], "a temporary file was left"


def test_failed_write_leaves_the_old_file(folder, monkeypatch):
    cache = TuningCache("choices")
    cache.add("machine", {"a": (1.0, 2.0)})

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package.os, "write", full)
    cache.add("machine", {"b": (3.0, 4.0)})
    assert cache.read("machine") == {"a": [1.0, 2.0]}
    assert [path.name for path in folder.iterdir()] == ["choices.json"], "a temporary file was left"


WRITER = textwrap.dedent(
    """
    import sys
    from sparsec.compiler.tuning_cache import TuningCache
    for i in range(200):
        TuningCache("choices").add("machine", {f"{sys.argv[1]}{i}": (float(i), 1.0)})
        assert all(len(pair) == 2 for pair in TuningCache("choices").read("machine").values())
    """
)


def test_writers_beside_each_other(folder):
    """Each file that anybody ever sees is whole."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name]) for name in "ab"]
    while any(writer.poll() is None for writer in writers):
        if (folder / "choices.json").exists():
            json.loads((folder / "choices.json").read_text())
    assert [writer.wait() for writer in writers] == [0, 0]
    found = TuningCache("choices").read("machine")
    assert [199.0, 1.0] in (found.get("a199"), found.get("b199")), "whoever wrote last wrote its last"
    assert [path.name for path in folder.iterdir()] == ["choices.json"]
