"""Engines by turns: each in a child process, on the same cores, stopped while it is not at its turn.

An engine that waits would spin on a core that another one needs; SIGSTOP takes its threads away whole.  Turns
are short and in random order, so that whatever the machine does meanwhile meets all engines alike.
"""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparsec.compiler.cli.measure import Latency

TURN = 0.25  # seconds: several calls of the largest models, short beside the drift of clocks
MIN_ROUNDS = 3
PATIENCE = 300.0  # seconds for an engine to open a model or to end a turn


class EngineError(Exception):
    """The engine could not be started, or died; the text is the last line that it wrote."""


@dataclass(frozen=True)
class Entrant:
    """An engine and what it runs.  ``label`` names it in the row; ``extra`` goes into its spec."""

    label: str
    engine: str
    model: Path
    python: str = sys.executable
    extra: dict = field(default_factory=dict)


class Child:
    """A running engine, stopped except during ``turn``."""

    def __init__(self, entrant: Entrant, threads: int, feeds: Path, folder: Path):
        self._name, self._errors = entrant.label, folder / f"{entrant.label}.err"
        outputs, spec = folder / f"{entrant.label}.npz", folder / f"{entrant.label}.json"
        asked = {"engine": entrant.engine, "model": str(entrant.model), "threads": threads} | entrant.extra
        asked |= {"cores": cores(threads), "feeds": str(feeds), "outputs": str(outputs)}
        spec.write_text(json.dumps(asked))
        command = [entrant.python, str(Path(__file__).with_name("engine.py")), str(spec)]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        try:
            self.facts = self._reply()
            with np.load(outputs) as stored:
                self.outputs = [stored[name] for name in stored.files]
        except BaseException:
            self.close()
            raise
        self._process.send_signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> list[float]:
        """Seconds of each call that fits ``seconds``, at least one."""
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(f"{seconds}\n".encode())
        self._process.stdin.flush()
        found = self._reply()
        self._process.send_signal(signal.SIGSTOP)
        return found

    def _reply(self):
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            lines = self._errors.read_text(errors="replace").strip().splitlines()
            reason = f"no answer in {PATIENCE:g} s" if not ready else lines[-1] if lines else "it ended"
            raise EngineError(f"{self._name}: {reason}")
        return json.loads(line)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def cores(threads: int) -> list[int]:
    """The first ``threads`` cores that this process may use."""
    offered = sorted(os.sched_getaffinity(0))
    if threads > len(offered):
        raise EngineError(f"{threads} threads need {threads} cores, this process may use {len(offered)}")
    return offered[:threads]


def compete(entrants: list[Entrant], feeds: Path, threads: int, seconds: float) -> tuple[dict, dict]:
    """Measure all entrants on the inputs ``feeds`` (npz), ``seconds`` each.

    Returns what is known of each by label, its Latency as JSON or the reason of its failure, and the first
    outputs of each that runs.
    """
    cores(threads)  # refuses before anything starts
    facts, outputs = {}, {}
    with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as folder, contextlib.ExitStack() as stack:
        running = {}
        for entrant in entrants:
            try:
                child = Child(entrant, threads, feeds, Path(folder))
            except EngineError as error:
                facts[entrant.label] = {"failed": str(error)[:300]}
                continue
            stack.callback(child.close)
            running[entrant.label] = child
            facts[entrant.label], outputs[entrant.label] = child.facts, child.outputs
        for label, latency in by_turns(running, seconds).items():
            facts[label] |= latency.to_json()
    return facts, outputs


def by_turns(running: dict, seconds: float) -> dict[str, Latency]:
    """The latency of everything with a ``turn(seconds)``, ``seconds`` each in rounds of random order."""
    samples: dict[str, list[float]] = {label: [] for label in running}
    order, shuffle = list(running), random.Random(0).shuffle
    rounds, stop = 0, time.perf_counter() + seconds * len(running)
    while running and (rounds < MIN_ROUNDS or time.perf_counter() < stop):
        shuffle(order)
        for label in order:
            samples[label] += running[label].turn(min(TURN, seconds / MIN_ROUNDS))
        rounds += 1
    return {label: Latency(tuple(sorted(found))) for label, found in samples.items()}
