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
from sparsec.passes.quantize.walk import Outcome

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Trial:
    """`model` has the layers `chosen` for int8 as QDQ; `bfloat16` are to take their operands in bfloat16.

    `outcomes`: the int8 layers as quantising left them."""

    model: ir.Model
    chosen: Mapping[str, Form]
    findings: Sequence[Finding] = ()
    outcomes: Sequence[Outcome] = ()

    @property
    def precision(self) -> str:
        """Those below float32 that layers have, as a `CompileRequest` spells them."""
        return ",".join(sorted({form.precision for form in self.chosen.values()} - {FLOAT32})) or FLOAT32

    @property
    def bfloat16(self) -> tuple[str, ...]:
        return tuple(name for name, form in self.chosen.items() if form.precision == "bf16")

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
    made, findings, outcomes = model.clone(), [], ()
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
    return Trial(made, chosen, findings, outcomes)


def taken_back(integers: Trial, chosen: Mapping[str, Form]) -> Trial:
    """`chosen`, which has no pattern, out of a trial with more layers in int8: at once, though those that
    stay were fitted on inputs that are now nearer to the given ones."""
    made = integers.model.clone()
    stay = {name for name, form in chosen.items() if form.precision == "int8"}
    quantize.revert(made, [o for o in integers.outcomes if o.report["node"] not in stay])
    return Trial(made, chosen)


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
