"""The model with a form chosen for each layer, for real: as ONNX, and compiled for this machine."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec import runtime
from sparsec.compiler import reference
from sparsec.compiler.allocation.times import best_seconds
from sparsec.compiler.calibration import Replay
from sparsec.compiler.mixed.forms import EVERY, FLOAT32, Form
from sparsec.compiler.request import CompileRequest
from sparsec.passes.findings import Finding
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.prune import Pattern
from sparsec.passes.prune import insert as prune
from sparsec.passes.prune.grouping import group
from sparsec.passes.prune.walk import Settings as Pruning
from sparsec.passes.quantize import Settings
from sparsec.passes.quantize import insert as quantize

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Trial:
    """`model` has int8 layers as QDQ; the layers named `bfloat16` are to take their operands in bfloat16.

    `precision`: the ones below float32 that layers have, as a `CompileRequest` spells them."""

    model: ir.Model
    precision: str
    bfloat16: tuple[str, ...]
    findings: list[Finding]

    @property
    def meant(self) -> bytes:
        """What it computes, for ONNX Runtime: operands are rounded where kernels would."""
        data = ir.to_proto(self.model).SerializeToString()
        return reference.rounded(data, "bf16", self.bfloat16) if self.bfloat16 else data


def make(
    model: ir.Model,
    chosen: Mapping[str, Form],
    feeds: Feeds,
    pruning: Pruning,
    quantising: Settings,
    log: Callable[[str], None],
) -> Trial:
    """A copy of `model`, with the layers that `chosen` names in their forms.

    Patterns of floats come first, then integers, with their patterns, on the inputs that this gives; both are
    fitted to what the dense model computes.
    """
    made, findings = model.clone(), []
    integers = {name for name, form in chosen.items() if form.precision == "int8"}
    patterns = {name: form.pattern for name, form in chosen.items() if form.pattern}
    pruned = {name: own for name, own in patterns.items() if name not in integers}

    def pattern(layer: Layer) -> Pattern | None:
        return patterns.get(node_name(layer.node))

    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        if patterns:
            wanted, _ = prune.choose(list(find_layers(made)), made.graph, pattern, EVERY)
            findings += group(made, wanted, Replay(made, feeds, Path(folder) / "given"), pruning, log)
        given = made.clone()
        if pruned:
            runs = [Replay(m, feeds, Path(folder) / name) for m, name in ((given, "dense"), (made, "pruned"))]
            found, _ = prune.insert(
                made, lambda la: pruned.get(node_name(la.node)), *runs, pruning, EVERY, log=log
            )
            findings += [finding for finding in found if finding.applied]
        if integers:
            runs = [Replay(m, feeds, Path(folder) / name) for m, name in ((given, "float"), (made, "int8"))]
            names = (node_name(layer.node) for layer in find_layers(made))
            floats = {name: "it stays in floats" for name in names if name not in integers}
            outcomes, refused = quantize.quantise(made, pattern, *runs, quantising, EVERY, log, floats=floats)
            refused = {name: reason for name, reason in refused.items() if name in integers}
            findings += quantize.findings(outcomes, refused, {})
    used = sorted({form.precision for form in chosen.values()} - {FLOAT32})
    bfloat16 = tuple(name for name, form in chosen.items() if form.precision == "bf16")
    return Trial(made, ",".join(used) or FLOAT32, bfloat16, findings)


def compiled(
    trial: Trial, target: str, sparsity: str, feeds: Feeds
) -> tuple[float, list[dict[str, np.ndarray]]]:
    """Seconds of one run on one thread of this machine, and the outputs on `feeds`, of `trial` compiled for
    `target`."""
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        # Imported here: the road of a model leads through this file.
        from sparsec.compiler.pipeline import compile_model

        source, artifact = Path(folder) / "model.onnx", Path(folder) / "model.sparsec"
        source.write_bytes(ir.to_proto(trial.model).SerializeToString())
        plain = CompileRequest(
            str(source),
            str(artifact),
            target,
            sparsity=sparsity,
            precision=trial.precision,
            bfloat16=trial.bfloat16,
            verify=False,
        )
        compile_model(plain)
        with runtime.load(artifact, threads=1) as loaded:
            given = [{port.name: np.asarray(feed[port.name]) for port in loaded.inputs} for feed in feeds]
            return best_seconds(loaded, given[0]), [dict(loaded(feed)) for feed in given]
