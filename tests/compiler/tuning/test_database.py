"""The tuning database: lost or damaged it costs a measurement, never a compilation."""

import sqlite3
import subprocess
import sys
import textwrap

import pytest

from sparsec.compiler.errors import CompileError
from sparsec.compiler.tuning.database import Database, cache_folder

PAIR = {"dense": 2.0, "sparse": 1.0}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_round_trip(folder):
    assert Database().read("machine") == {}
    assert not folder.exists(), "reading makes nothing"
    Database().add("machine", {"a": PAIR})
    Database().add("machine", {"b": {"dense": 3.0}})
    Database().add("other", {"a": {"dense": 5.0}})
    assert Database().read("machine") == {"a": PAIR, "b": {"dense": 3.0}}
    assert Database().read("other") == {"a": {"dense": 5.0}}
    assert [path.name for path in folder.iterdir()] == ["tuning.db"]


def test_new_measurement_replaces():
    Database().add("machine", {"a": PAIR})
    Database().add("machine", {"a": {"dense": 4.0, "sparse": 3.0}})
    assert Database().read("machine") == {"a": {"dense": 4.0, "sparse": 3.0}}


def test_more_candidates_stay():
    tuned = PAIR | {"dense/3": 1.5}
    Database().add("machine", {"a": tuned})
    Database().add("machine", {"a": PAIR})
    assert Database().read("machine") == {"a": tuned}


def test_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SPARSEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sparsec"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sparsec"


def test_merge(tmp_path):
    here, there = Database(tmp_path / "here.db"), Database(tmp_path / "there.db")
    here.add("machine", {"a": PAIR, "b": PAIR | {"dense/3": 1.5}})
    there.add("machine", {"a": {"dense": 4.0, "sparse": 3.0}, "b": PAIR, "c": PAIR})
    there.add("other", {"a": PAIR})
    assert here.merge(there.path) == 4
    assert here.read("machine") == {
        "a": {"dense": 4.0, "sparse": 3.0},
        "b": PAIR | {"dense/3": 1.5},
        "c": PAIR,
    }
    assert here.read("other") == {"a": PAIR}
    assert there.read("machine")["b"] == PAIR, "the other one is only read"


def test_an_older_measurement_gives_way_whichever_is_merged_into_which(tmp_path):
    old, new = Database(tmp_path / "old.db"), Database(tmp_path / "new.db")
    old.add("machine", {"a": PAIR})
    new.add("machine", {"a": {"dense": 4.0, "sparse": 3.0}})
    new.merge(old.path)
    old.merge(new.path)
    assert old.read("machine") == new.read("machine") == {"a": {"dense": 4.0, "sparse": 3.0}}


@pytest.mark.parametrize("content", [None, b"", b"no database", b"SQLite format 3\x00" + b"\xff" * 500])
def test_merge_of_something_else(content, tmp_path):
    other = tmp_path / "other.db"
    if content is not None:
        other.write_bytes(content)
    with pytest.raises(CompileError, match="other.db' is not a tuning database: .") as caught:
        Database().merge(other)
    assert "\n" not in str(caught.value)


DAMAGED = {
    "empty": b"",
    "no database": b"\xff\xfe\x00\x01" * 300,
    "header alone": b"SQLite format 3\x00" + b"\xff" * 500,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_is_empty_and_begun_anew(case, folder):
    folder.mkdir()
    (folder / "tuning.db").write_bytes(DAMAGED[case])
    assert Database().read("machine") == {}
    Database().add("machine", {"a": PAIR})
    assert Database().read("machine") == {"a": PAIR}


def test_cut_off_is_empty_and_begun_anew(folder):
    Database().add("machine", {str(i): PAIR for i in range(2000)})
    path = folder / "tuning.db"
    path.write_bytes(path.read_bytes()[:20_000])
    assert Database().read("machine") == {}
    Database().add("machine", {"a": PAIR})
    assert Database().read("machine") == {"a": PAIR}


@pytest.mark.parametrize(
    "row",
    [
        ("machine", "a", 2, '{"dense": 1.0}', 1.0),
        ("machine", "a", 0, "{}", 1.0),
        ("machine", "a", 1, '{"dense": NaN}', 1.0),
        ("machine", "a", 1, '{"dense": -1.0}', 1.0),
        ("machine", "a", 1, '{"dense": "1"}', 1.0),
        ("machine", "a", 1, "[1.0]", 1.0),
        ("machine", "a", 1, "{", 1.0),
        ("machine", "a", 1, None, 1.0),
        ("machine", "a", 1, '{"dense": 1.0}', "today"),
    ],
    ids=str,
)
def test_rows_that_cannot_have_been_measured(row, folder):
    Database().add("machine", {"b": PAIR})
    with sqlite3.connect(folder / "tuning.db") as connection:
        connection.execute("INSERT INTO measured VALUES (?, ?, ?, ?, ?)", row)
    connection.close()
    assert Database().read("machine") == {"b": PAIR}


@pytest.mark.parametrize("place", ["folder", "file"])
def test_that_cannot_be_written(place, folder):
    if place == "folder":
        folder.write_text("a file stands here")
    else:
        (folder / "tuning.db").mkdir(parents=True)
    with pytest.raises(
        CompileError, match="the tuning database '.*tuning.db' cannot be written: ."
    ) as caught:
        Database().add("machine", {"a": PAIR})
    assert "\n" not in str(caught.value)
    assert Database().read("machine") == {}


def test_a_full_disk_leaves_what_was_there(folder):
    Database().add("machine", {"a": PAIR})
    program = textwrap.dedent(
        """
        import resource, signal
        from sparsec.compiler.tuning.database import Database
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
        try:
            Database().add("machine", {str(i): {"dense": 1.0} for i in range(5000)})
        except Exception as error:
            print(type(error).__name__, error)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("CompileError the tuning database ")
    assert Database().read("machine") == {"a": PAIR}


WRITER = textwrap.dedent(
    """
    import sys
    from sparsec.compiler.tuning.database import Database
    for i in range(50):
        Database().add("machine", {f"{sys.argv[1]}{i}": {"dense": 1.0}})
    """
)


def test_writers_beside_each_other(folder):
    """Nothing that anybody measured is lost."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert set(Database().read("machine")) == {f"{name}{i}" for name in "abc" for i in range(50)}
