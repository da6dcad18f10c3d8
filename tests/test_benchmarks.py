"""The committed tables are those that their JSON makes."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_table_is_made_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("benchmarks_run", ROOT / "benchmarks" / "run.py")
    run = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_run", run)
    spec.loader.exec_module(run)
    results = ROOT / "benchmarks" / "results"
    found = json.loads((results / "models.json").read_text())
    assert (results / "models.md").read_text() == run.markdown(found), "run make bench again"
