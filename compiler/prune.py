"""Pruning with calibration data: the model is run by ONNX Runtime, layer by layer, as `passes.prune` asks."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec.compiler.calibration import MASKS, Folder, Replay, read_batches
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import form
from sparsec.passes.dead_channels import RemoveDeadChannels
from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_choice import MIN_SIZE, Choice
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.prune import Pattern, Unstructured, parse_pattern
from sparsec.passes.prune.grouping import group
from sparsec.passes.prune.insert import choose, insert
from sparsec.passes.prune.structure import Channels, choose_channels
from sparsec.passes.prune.walk import Settings


@dataclass(frozen=True)
class PruneRequest:
    """`pattern` as `passes.prune.layout` spells it; `mask` "" for an input called as in `MASKS`, if any.
    `rank`: of a low-rank term beside each pruned matrix, 0 for none. `group`: first put channels into the
    order that suits the pattern, where that is free."""

    pattern: str
    method: str
    calib: str
    reconstruct: bool = True
    damping: float | None = None
    spread: str = "uniform"
    mask: str = ""
    layers: str = "*"
    skip: str = ""
    min_size: int = MIN_SIZE
    state: str | None = None
    sweeps: int = 1
    rank: int = 0
    group: bool = True


def prune_model(
    model: ir.Model, request: PruneRequest, log: Callable[[str], None]
) -> tuple[list[Finding], list[dict]]:
    """Prune `model` in place; findings and one report a layer. Raises PassError and CompileError."""
    pattern = Channels.parse(request.pattern) or parse_pattern(request.pattern)
    if request.rank and isinstance(pattern, Channels):
        raise CompileError(f"--rank {request.rank}: needs a pattern of single weights, found {pattern}")
    if request.spread != "uniform" and not isinstance(pattern, Unstructured):
        raise CompileError(
            f"--spread {request.spread}: needs an unstructured pattern such as 60%, found {pattern}"
        )
    return prune_on(model, pattern, read_batches(request.calib, model), request, log)


def mask_input(model: ir.Model, given: str) -> str | None:
    """The input whose zeros mark padding: the one `given`, else one called as in `MASKS`, if any."""
    inputs = [value.name for value in model.graph.inputs]
    if given and given not in inputs:
        raise CompileError(f"--mask {given}: must name an input of the model, found {', '.join(inputs)}")
    return given or next((name for name in MASKS if name in inputs), None)


def prune_on(
    model: ir.Model,
    pattern: Pattern | Callable[[Layer], Pattern | str | None] | Channels,
    feeds: Sequence[Mapping[str, np.ndarray]],
    request: PruneRequest,
    log: Callable[[str], None],
) -> tuple[list[Finding], list[dict]]:
    """`prune_model` on batches that have been read, to one pattern or to one for each layer (None: dense)."""
    form.infer(model)  # the places of layers are told by their shapes
    mask = mask_input(model, request.mask)
    settings = Settings(request.method, request.reconstruct, request.damping, mask, request.spread)
    choice = Choice(request.layers, request.skip, request.min_size)
    memory = Folder(Path(request.state), _identity(model, request)) if request.state else None
    before: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        observed = Replay(model, feeds, Path(folder) / "given")
        structured = isinstance(pattern, Channels)
        if structured:
            pattern, before = _between(model, pattern, observed, settings, choice, log)
        elif request.group:
            wanted, _ = choose(list(find_layers(model)), model.graph, pattern, choice)
            before = group(model, wanted, observed, settings, log)
        shutil.rmtree(observed.folder)
        given = model.clone()
        dense = Replay(given, feeds, Path(folder) / "dense")
        pruned = Replay(model, feeds, Path(folder) / "pruned")
        again = (
            (Replay(given, feeds, dense.folder), Replay(model, feeds, pruned.folder))
            for _ in range(request.sweeps - 1)
        )
        term = None
        if request.rank:
            observers = (Replay(m, feeds, Path(folder) / f"term-{m is model}") for m in (given, model))
            term = request.rank, tuple(observers)
        findings, layers = insert(
            model, pattern, dense, pruned, settings, choice, again=again, term=term, memory=memory, log=log
        )
    after = list(RemoveDeadChannels()(model).findings) if structured else []
    return before + findings + after, layers


def _between(
    model: ir.Model, pattern: Channels, observed: Replay, settings: Settings, choice: Choice, log
) -> tuple[Callable[[Layer], Pattern | str], list[Finding]]:
    """The pattern of each layer, where channels between layers go."""
    columns, findings = choose_channels(model, pattern, observed, settings, choice, log)
    return lambda layer: columns.get(node_name(layer.node), "it reads no channels that can go"), findings


def _identity(model: ir.Model, request: PruneRequest) -> dict:
    options = {
        key: value
        for key, value in asdict(request).items()
        if key not in ("calib", "state", "sweeps", "rank")
    }
    return options | {
        "model": hashlib.sha256(ir.to_proto(model).SerializeToString()).hexdigest(),
        "data": hashlib.sha256(Path(request.calib).read_bytes()).hexdigest(),
    }
