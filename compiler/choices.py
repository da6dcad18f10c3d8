"""Sparse or dense, layer by layer: the faster kernel, measured on this machine.

A pair of kernels is timed once per structure, shape, CPU level and machine, and remembered in the
tuning cache (``$SPARSEC_CACHE``, else ``~/.cache/sparsec``).  Where this machine cannot run the level,
a cost model decides.  Within ``NEAR_TIE`` the sparse kernel wins: it is smaller, and noise must not
decide.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import tvm

import sparsec
from sparsec.compiler.errors import CompileError
from sparsec.compiler.objects import build_library
from sparsec.compiler.request import CompileRequest, runnable
from sparsec.compiler.to_relax.linear import layer, pattern_text
from sparsec.compiler.tuning_cache import TuningCache
from sparsec.passes import Finding
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.layout import DENSE
from sparsec.schedules.target import X86_LEVELS, Cpu

NEAR_TIE = 1.03
RATE = {"dense": 1.0, "shared": 1.0, "lanes": 0.73, "gather": 0.25}
"""Multiply-adds of a packed form relative to the dense kernel's rate, on the cores measured so far."""


def choose(model: ir.Model, request: CompileRequest, levels: tuple[str, ...]) -> tuple[dict, list[Finding]]:
    """``{node name: "sparse" | "dense"}`` for every node with a pattern, and the reason of each.

    Raises CompileError under ``sparsity="require"`` where dense is faster, and for a ``choices``
    file that cannot be read or names what the model does not have.
    """
    nodes = {
        node.name: node for node in model.graph if "m" in node.attributes and node.attributes["m"].as_int()
    }
    if request.sparsity == "off":
        reason = "sparsity is off"
        return dict.fromkeys(nodes, "dense"), [_finding(n, "dense", reason) for n in nodes.values()]
    if request.choices:
        given = _read(request.choices, nodes)
        return given, [
            _finding(nodes[name], kernel, "as given by --choices") for name, kernel in given.items()
        ]
    specs = {name: layer(node) for name, node in nodes.items()}
    times = _times(dict(specs.values()), levels)
    choices, findings, slower = {}, [], []
    for name, node in nodes.items():
        dense, sparse, how = times[specs[name][0]]
        kernel = "sparse" if sparse <= dense * NEAR_TIE else "dense"
        choices[name] = kernel
        reason = f"{how}: sparse {sparse / dense:.2f}x the time of dense"
        findings.append(_finding(node, kernel, reason))
        if kernel == "dense":
            slower.append(f"{name} ({pattern_text(node)}, {reason})")
    if request.sparsity == "require" and slower:
        raise CompileError(
            f"--sparsity require: {len(slower)} layers would be slower sparse: {'; '.join(slower)}; "
            "prune them to a shared pattern such as 2:4x32, or use --sparsity auto"
        )
    return choices, findings


def _finding(node: ir.Node, kernel: str, reason: str) -> Finding:
    outcome = "applied" if kernel == "sparse" else "declined"
    return Finding("choose", node.name, outcome, reason, pattern_text(node), kernel)


def _read(path: str, nodes) -> dict[str, str]:
    try:
        given = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise CompileError(f"choices '{path}' cannot be read as JSON: {error}") from error
    given = given.get("choices", given) if isinstance(given, dict) else given
    if (
        not isinstance(given, dict)
        or set(given) != set(nodes)
        or any(kernel not in ("sparse", "dense") for kernel in given.values())
    ):
        raise CompileError(
            f"choices '{path}' must map each of the {len(nodes)} layers with a pattern to "
            "'sparse' or 'dense'; take the 'choices' of an artifact of the same model"
        )
    return given


def _times(weights: dict, levels: tuple[str, ...]) -> dict:
    """``spec -> (dense seconds, sparse seconds, how they are known)``; ``weights`` has one for each spec."""
    level = next(iter(runnable(levels)), None)
    if level is None:
        return {spec: (*_model(spec, weight.shape[-1]), "estimated") for spec, weight in weights.items()}
    machine = f"{cpu_name()}|{level}|tvm {tvm.__version__}|sparsec {sparsec.__version__}"
    cache = TuningCache("choices")
    known = cache.read(machine)
    missing = [spec for spec in weights if to_text(spec) not in known]
    if missing:
        measured = _measure({spec: weights[spec] for spec in missing}, X86_LEVELS[level])
        cache.add(machine, measured)
        known = {**known, **measured}
    return {spec: (*known[to_text(spec)], "measured") for spec in weights}


def _model(spec, channels: int) -> tuple[float, float]:
    """Relative times by counting multiply-adds over ``channels`` input channels."""
    return 1.0, spec.pattern.kept(channels) / channels / RATE[spec.pattern.form(channels)]


def _measure(weights: dict, cpu: Cpu) -> dict[str, tuple[float, float]]:
    """Seconds of the dense and the sparse kernel of each spec: best of interleaved runs on one thread."""
    functions, pairs = {}, []
    for index, spec in enumerate(weights):
        pair = {"dense": dataclasses.replace(spec, pattern=DENSE), "sparse": spec}
        pairs.append(pair)
        for kind, made in pair.items():
            name = f"{kind}_{index}"
            functions[name] = made.prim_func().with_attr("global_symbol", name)
    library = build_library(tvm.IRModule(functions), cpu).library
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    result = {}
    for index, (spec, weight) in enumerate(weights.items()):
        x = np.random.default_rng(index).standard_normal(spec.x_shape).astype(np.float32)
        runs = []
        for kind, made in pairs[index].items():
            arrays = [x, *made.pack(weight.astype(np.float32)), np.zeros(made.y_shape, np.float32)]
            runs.append(functools.partial(library[f"{kind}_{index}"], *map(tvm.runtime.tensor, arrays)))
        result[to_text(spec)] = _best_times(runs)
    return result


def _best_times(runs: list[Callable[[], object]]) -> tuple[float, ...]:
    """The shortest time of each run, taken in turn until a tenth of a second has gone (3 to 50 rounds)."""
    best = [float("inf")] * len(runs)
    for run in runs:
        run()
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or (rounds < 50 and time.perf_counter() - start < 0.1):
        for index, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            best[index] = min(best[index], time.perf_counter() - begin)
        rounds += 1
    return tuple(best)


def cpu_name() -> str:
    """This machine's processor, as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
