"""What was measured on this machine, kept between compilations as one JSON file.

A cache may be lost or damaged at any time: it is then empty.  Writers replace the file by one rename,
after reading it again, so concurrent compilations lose at most a measurement that can be repeated.
"""

import contextlib
import json
import os
from math import isfinite
from pathlib import Path

from sparsec.compiler.errors import CompileError
from sparsec.compiler.package import publish


def cache_folder() -> Path:
    """``$SPARSEC_CACHE``, else ``$XDG_CACHE_HOME/sparsec``, else ``~/.cache/sparsec``."""
    given = os.environ.get("SPARSEC_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsec"


class TuningCache:
    """A two-level map: machine, then structure, to a list of seconds."""

    def __init__(self, name: str):
        self.path = cache_folder() / f"{name}.json"

    def read(self, machine: str) -> dict[str, list[float]]:
        return self._load().get(machine, {})

    def add(self, machine: str, measured: dict) -> None:
        """Merge ``measured`` in; a folder that cannot be written costs only the repetition."""
        content = self._load()
        content.setdefault(machine, {}).update({key: list(value) for key, value in measured.items()})
        with contextlib.suppress(OSError, CompileError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            publish(self.path, [json.dumps(content, indent=1, sort_keys=True).encode()])

    def _load(self) -> dict:
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if _is_cache(content) else {}


def _is_cache(content) -> bool:
    """Whether ``content`` maps machines to structures to pairs of times that can have been measured."""
    return isinstance(content, dict) and all(
        isinstance(times, dict) and all(_is_pair(pair) for pair in times.values())
        for times in content.values()
    )


def _is_pair(pair) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(seconds, float) and isfinite(seconds) and seconds > 0 for seconds in pair)
    )
