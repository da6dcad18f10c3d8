"""The stop-watch itself: percentiles by definition, ratios that are known, processes that fail."""

import os
import time

import numpy as np
import pytest

from sparsec.compiler.cli import measure


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 101])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_percentiles_are_the_inverted_distribution(count, share):
    samples = np.sort(np.random.default_rng(count).random(count))
    expected = np.quantile(samples, share, method="inverted_cdf")
    assert measure.Latency(tuple(samples.tolist())).percentile(share) == expected


def test_a_known_ratio_is_found():
    engines = {"one": lambda: time.sleep(0.002), "two": lambda: time.sleep(0.006)}
    found = measure.interleaved(engines, seconds=1.0)
    ratio = found["two"].percentile(0.5) / found["one"].percentile(0.5)
    assert 2 < ratio < 4


def test_the_first_call_of_a_burst_does_not_count():
    calls = []

    def call():
        calls.append(None)
        time.sleep(0.02 if len(calls) == 1 else 0)

    samples = measure.burst(call, 5)
    assert len(calls) == 6
    assert max(samples) < 0.01


def test_json_has_milliseconds():
    found = measure.Latency((0.001, 0.002, 0.003)).to_json()
    assert found == {"p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 3.0, "mean_ms": pytest.approx(2.0), "calls": 3}


def test_pinned_restores_the_cores():
    before = os.sched_getaffinity(0)
    with measure.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_a_fresh_process_tells_time_and_memory():
    found = measure.fresh_process("import sys, time; time.sleep(float(sys.argv[1]))", ["0.05"])
    assert 50 <= found["cold_start_ms"] < 1000
    assert 1e6 < found["peak_memory_bytes"] < 1e9


def test_a_fresh_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="the fresh process failed: ValueError: no such model"):
        measure.fresh_process("raise ValueError('no such model')", [])
