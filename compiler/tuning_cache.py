"""What was measured on this machine, kept between compilations as one JSON file.

A cache may be lost or damaged at any time: it is then empty.  Writers replace the file by one rename,
after reading it again, so concurrent compilations lose at most a measurement that can be repeated.
"""

import json
import os
import tempfile
from pathlib import Path


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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self._load()
            content.setdefault(machine, {}).update({key: list(value) for key, value in measured.items()})
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            with os.fdopen(handle, "w") as file:
                json.dump(content, file, indent=1, sort_keys=True)
            os.replace(temporary, self.path)
        except OSError:
            return

    def _load(self) -> dict:
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        good = isinstance(content, dict) and all(
            isinstance(pairs, dict)
            and all(
                isinstance(pair, list) and all(isinstance(t, float) for t in pair) for pair in pairs.values()
            )
            for pairs in content.values()
        )
        return content if good else {}
