"""Latency that can be compared: engines run by turns in one process, pinned, in bursts.

Two engines measured one after the other differ by what the machine did meanwhile; measured call by
call they evict each other's weights.  So each round gives every engine a burst of calls, in random
order, and the first call of a burst, which finds the caches of the other engine, does not count.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

BURST = 0.05  # seconds: long beside the first call, short beside the drift of clocks
ROUNDS = 12


@dataclass(frozen=True)
class Latency:
    """Sorted seconds per call."""

    samples: tuple[float, ...]

    def percentile(self, share: float) -> float:
        """The smallest sample that at least ``share`` of all samples do not exceed."""
        index = -(-len(self.samples) * share // 1)
        return self.samples[max(0, min(len(self.samples), int(index)) - 1)]

    def to_json(self) -> dict:
        """p50, p90, p99 and the mean in milliseconds, and the number of calls."""
        found = {f"p{p}_ms": self.percentile(p / 100) * 1e3 for p in (50, 90, 99)}
        return found | {"mean_ms": sum(self.samples) / len(self.samples) * 1e3, "calls": len(self.samples)}


def interleaved(engines: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Latency]:
    """Latency of each engine's call; ``seconds`` is the time for all of them together."""
    calls = {}
    for name, call in engines.items():
        call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-7)
        calls[name] = max(1, min(20_000, int(BURST / once)))
    samples: dict[str, list[float]] = {name: [] for name in engines}
    order = list(engines)
    shuffle = random.Random(0).shuffle
    stop, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or (time.perf_counter() < stop and rounds < 100 * ROUNDS):
        shuffle(order)
        for name in order:
            samples[name] += burst(engines[name], calls[name])
        rounds += 1
    return {name: Latency(tuple(sorted(found))) for name, found in samples.items()}


def burst(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of ``count`` calls after one that does not count."""
    call()
    found = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this process on as many cores as it has threads, where the machine has that many."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads] or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# Run with -c in a fresh interpreter; {setup} defines `first()`, which loads and runs once.
_COLD = """
import json, time
start = time.perf_counter()
{setup}
result = {{"cold_start_ms": (time.perf_counter() - start) * 1e3}}
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        result["peak_memory_bytes"] = int(line.split()[1]) * 1024
print(json.dumps(result))
"""


def fresh_process(setup: str, arguments: list[str]) -> dict:
    """Milliseconds from import to first result, and peak memory, in a new interpreter.

    ``setup`` is Python text that imports, loads and runs once; it finds ``arguments`` in ``sys.argv``.
    Raises RuntimeError with the last line that the process wrote if it fails.
    """
    code = _COLD.format(setup=setup)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"the fresh process failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])
