"""The stop-watch: candidates of layers, built alone and run by turns on one thread of this machine."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tvm

import sparsec
from sparsec.compiler.objects import build_library
from sparsec.compiler.tuning.candidates import Candidate
from sparsec.schedules.contraction_rule import TILE_PANELS
from sparsec.schedules.contraction_spec import kind_of, to_text
from sparsec.schedules.target import LEVELS


def context(level: str) -> str:
    """What a time depends on beside the structure: processor, CPU level, tools."""
    return f"{cpu_name()}|{level}|tvm {tvm.__version__}|sparsec {sparsec.__version__}"


def cpu_name() -> str:
    """This machine's processor, as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def measure(
    weights: Mapping, candidates: Mapping[object, Sequence[Candidate]], level: str
) -> dict[str, dict[str, float]]:
    """``{structure: {candidate: seconds}}``: the best of runs by turns of each layer's candidates.

    ``weights`` has a weight for each layer, ``candidates`` what to try.
    """
    functions = {}
    for index, layer in enumerate(weights):
        for candidate in candidates[layer]:
            name = function_name(index, candidate)
            func = candidate.spec(layer).prim_func().with_attr("global_symbol", name)
            functions[name] = func.with_attr(TILE_PANELS, candidate.panels) if candidate.panels else func
    library = build_library(tvm.IRModule(functions), LEVELS[level]).library
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    result = {}
    for index, (layer, weight) in enumerate(weights.items()):
        values = np.random.default_rng(index).standard_normal(layer.x_shape).astype(np.float32)
        y = tvm.runtime.tensor(np.zeros(layer.y_shape, kind_of(layer).sums))
        packed, runs = {}, []
        for candidate in candidates[layer]:
            if candidate.kernel not in packed:
                spec = candidate.spec(layer)
                x = kind_of(spec).stored_activations(values)
                arrays = (x, *spec.pack(weight.astype(np.float32)))
                packed[candidate.kernel] = [tvm.runtime.tensor(array) for array in arrays]
            run = library[function_name(index, candidate)]
            runs.append(functools.partial(run, *packed[candidate.kernel], y))
        times = best_times(runs)
        result[to_text(layer)] = dict(zip(map(str, candidates[layer]), times, strict=True))
    return result


def function_name(index: int, candidate: Candidate) -> str:
    return f"{candidate.kernel}_{candidate.panels}_{index}"


def best_times(runs: list[Callable[[], object]]) -> tuple[float, ...]:
    """The shortest time of each run, by turns for 50 ms a run (3 to 50 rounds)."""
    best = [float("inf")] * len(runs)
    for run in runs:
        run()
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or (rounds < 50 and time.perf_counter() - start < 0.05 * len(runs)):
        for index, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            best[index] = min(best[index], time.perf_counter() - begin)
        rounds += 1
    return tuple(best)
