"""The tuning database: how long kernels took, one SQLite file.

A row holds the times of all candidates of one structure that were measured by turns, so that they compare.
Its key is the context (processor, CPU level, versions of TVM and sparsec) and the structure: a contraction's
spec as text, which has every shape and the pattern.  Writers may work beside each other; a row gives way
only to one with at least as many candidates.  A database may be lost or damaged at any time: it is then
empty, and the next writer begins a new one.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path

from sparsec.compiler.errors import CompileError

#: Seconds that a writer waits for another one.
PATIENCE = 30.0
_DAMAGED = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
_TABLE = """CREATE TABLE IF NOT EXISTS measured (
    context TEXT, structure TEXT, candidates INTEGER, times TEXT, at REAL,
    PRIMARY KEY (context, structure))"""
_PUT = """INSERT INTO measured VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (context, structure) DO UPDATE
    SET candidates = excluded.candidates, times = excluded.times, at = excluded.at
    WHERE excluded.candidates > candidates OR (excluded.candidates = candidates AND excluded.at > at)"""

Row = tuple[str, str, int, str, float]


def cache_folder() -> Path:
    """``$SPARSEC_CACHE``, else ``$XDG_CACHE_HOME/sparsec``, else ``~/.cache/sparsec``."""
    given = os.environ.get("SPARSEC_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsec"


class Database:
    """``{context: {structure: {candidate: seconds}}}`` in a file; by default ``tuning.db`` in the cache."""

    def __init__(self, path: Path | None = None):
        self.path = path or cache_folder() / "tuning.db"

    def read(self, context: str) -> dict[str, dict[str, float]]:
        """What is known in ``context``; nothing where the file is missing, damaged or unreadable."""
        with contextlib.suppress(sqlite3.Error, OSError):
            return {row[1]: json.loads(row[3]) for row in self._rows() if row[0] == context}
        return {}

    def add(self, context: str, measured: Mapping[str, Mapping[str, float]]) -> None:
        """Puts the times of each structure.  Raises CompileError where the file cannot be written."""
        now = time.time()
        self._put((context, s, len(t), json.dumps(dict(t)), now) for s, t in measured.items())

    def merge(self, other: Path) -> int:
        """Takes over the rows of another database; returns how many it has.

        Raises CompileError where ``other`` is no tuning database or this one cannot be written.
        """
        try:
            rows = list(Database(other)._rows())
        except (sqlite3.Error, OSError) as error:
            raise CompileError(f"'{other}' is not a tuning database: {error}") from error
        self._put(rows)
        return len(rows)

    def _rows(self) -> Iterator[Row]:
        if not self.path.is_file():
            raise FileNotFoundError("no such file")
        # Read-only, so that looking into a database neither makes nor changes one.
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE)) as connection:
            found = connection.execute("SELECT context, structure, candidates, times, at FROM measured")
            yield from filter(_is_row, found)

    def _put(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._write(rows)
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode not in _DAMAGED:
                    raise
                self.path.unlink()
                self._write(rows)
        except (sqlite3.Error, OSError) as error:
            raise CompileError(f"the tuning database '{self.path}' cannot be written: {error}") from error

    def _write(self, rows: list[Row]) -> None:
        with contextlib.closing(sqlite3.connect(self.path, timeout=PATIENCE)) as connection, connection:
            connection.execute(_TABLE)
            connection.executemany(_PUT, rows)


def _is_row(row: tuple) -> bool:
    """Whether the times are ones that can have been measured."""
    context, structure, candidates, times, at = row
    try:
        times = json.loads(times)
    except (TypeError, ValueError, RecursionError):
        return False
    return (
        isinstance(context, str)
        and isinstance(structure, str)
        and isinstance(at, float)
        and isinstance(times, dict)
        and len(times) == candidates > 0
        and all(isinstance(s, float) and isfinite(s) and s > 0 for s in times.values())
    )
