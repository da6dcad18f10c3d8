"""Seconds of every layer of a model in every pattern, and of the whole dense model, on this machine."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec import passes, runtime
from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import ingest
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest, native_level
from sparsec.compiler.to_relax.products import products
from sparsec.compiler.tuning.candidates import kernels
from sparsec.compiler.tuning.database import Database
from sparsec.compiler.tuning.measure import context, measure
from sparsec.passes.nm_pattern import MAX_M, MIN_ZEROS, NM
from sparsec.passes.prune.layout import Layout, Pattern
from sparsec.schedules import layout
from sparsec.schedules.contraction import packed_for
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.target import LEVELS

DENSE = "dense"


def layer_times(
    model: ir.Model,
    options: Mapping[str, Sequence[Pattern]],
    shapes: Mapping[str, tuple[int, ...]],
    log: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """``{node: {pattern or "dense": seconds}}`` for the nodes of ``options``, at the inputs' ``shapes``.

    A pattern that is slower than dense costs what dense costs: that is the kernel which a compilation
    takes.  Times come from the tuning database, or are measured and put there.
    """
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(ir.to_proto(model).SerializeToString())
        frozen = ingest(path, dict(shapes), {}, log=lambda line: None)
    passes.run_pipeline(frozen, ())
    channels_last(frozen)
    layers = {node.name: made for node in frozen.graph if (made := products(node))}
    permute, known = LEVELS[native_level()].permute, Database().read(context(native_level()))
    times: dict[str, dict[str, float]] = {}
    for number, (name, patterns) in enumerate(options.items(), 1):
        if name not in layers:
            continue  # it folds away before it is run
        made = {
            p: [
                (packed_for(dataclasses.replace(spec, pattern=stored(p)), permute), masked(w, p))
                for spec, w in layers[name]
            ]
            for p in patterns
        }
        weights = dict(product for parts in made.values() for product in parts)
        complete(
            known,
            weights,
            native_level(),
            partial(log, f"time the kernels of layer {number} of {len(options)}"),
        )
        rows = {p: sums([known[to_text(spec)] for spec, _ in parts]) for p, parts in made.items()}
        dense = min(row["dense"] for row in rows.values())
        # The ratio was measured by turns; the dense time of other patterns' rows was not.
        times[name] = {DENSE: dense}
        times[name] |= {str(p): dense * ratio(p, row) for p, row in rows.items()}
    return times


def complete(
    known: dict[str, dict[str, float]], weights: Mapping, level: str, began: Callable[[], None]
) -> None:
    """Adds to ``known`` the times that it lacks of ``weights``, spec -> weight; the database has them then.

    ``began`` is called where something must be measured.
    """
    missing = {spec: weight for spec, weight in weights.items() if to_text(spec) not in known}
    if not missing:
        return
    began()
    found = measure(missing, {spec: kernels(spec) for spec in missing}, level)
    with contextlib.suppress(CompileError):  # a database that cannot be written costs the repetition
        Database().add(context(level), found)
    known.update(found)


def sums(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of all products of a layer together."""
    return {kernel: sum(row[kernel] for row in rows) for kernel in ("dense", "sparse")}


def ratio(pattern: Pattern, row: Mapping[str, float]) -> float:
    """Of what a compilation runs to the dense kernel; too few scattered zeros are not made use of."""
    if not isinstance(pattern, NM) and pattern.sparsity < MIN_ZEROS:
        return 1.0
    return min(1.0, row["sparse"] / row["dense"])


def stored(pattern: Pattern) -> layout.Pattern:
    """As `RecogniseNM` will find it, and the kernel store it."""
    if isinstance(pattern, NM):
        return layout.Pattern(pattern.n, pattern.m, pattern.block)
    return layout.Pattern(max(1, ceil((1 - pattern.sparsity) * MAX_M)), MAX_M, pattern.block, scattered=True)


def masked(weight: np.ndarray, pattern: Pattern) -> np.ndarray:
    """``weight`` with the largest of each group kept; ``[n, k]`` or ``[O, h, w, I]``."""
    rows, inputs = weight.shape[0], weight.shape[-1]
    flat = weight.reshape(rows, -1)
    places = Layout.of(pattern, rows, inputs, flat.shape[1] // inputs)
    kept = places.restore(places.spread(places.best(np.abs(flat[:, places.order]))))
    return np.where(kept, flat, 0).reshape(weight.shape)


def model_seconds(model: ir.Model, shapes: Mapping[str, tuple[int, ...]], feed: Mapping) -> float:
    """The best time of one run of ``model``, compiled for this machine, on one thread.

    The best, as for the layers: other work on the machine then disturbs the ratio of the two less.
    """
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        source, artifact = Path(folder) / "model.onnx", Path(folder) / "model.sparsec"
        source.write_bytes(ir.to_proto(model).SerializeToString())
        compile_model(
            CompileRequest(str(source), str(artifact), target="native", shapes=dict(shapes), verify=False)
        )
        with runtime.load(artifact, threads=1) as compiled:
            return best_seconds(
                compiled, {port.name: np.asarray(feed[port.name]) for port in compiled.inputs}
            )


def best_seconds(compiled: runtime.Model, given: Mapping[str, np.ndarray]) -> float:
    """The best time of one run on ``given``, of five and more in a second."""
    compiled(given)
    seconds, start = [], time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - start < 1:
        begin = time.perf_counter()
        compiled(given)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
