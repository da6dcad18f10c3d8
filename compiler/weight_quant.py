"""Rounding weights on calibration data: ONNX Runtime runs the model for `quantise-weights`, part by part."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from sparsec.compiler.calibration import Replay, read_batches
from sparsec.compiler.ingest import form
from sparsec.compiler.prune import mask_input
from sparsec.passes import Finding, SparsecPass
from sparsec.passes.quantize import weights
from sparsec.passes.weight_quant import QuantiseWeights


def calibrated(
    pipeline: Sequence[SparsecPass], calib: str | None, log: Callable[[str], None]
) -> list[SparsecPass]:
    """``pipeline`` with weights rounded on the npz at ``calib``, where there is one."""
    return [
        Calibrated(pass_, calib, log) if calib and isinstance(pass_, QuantiseWeights) else pass_
        for pass_ in pipeline
    ]


@dataclass(frozen=True)
class Calibrated(SparsecPass):
    """``asked``, its weights rounded for the least error of the layers' outputs on the npz at ``calib``."""

    NAME: ClassVar[str] = QuantiseWeights.NAME
    SUMMARY: ClassVar[str] = QuantiseWeights.SUMMARY
    EXAMPLE: ClassVar[str] = QuantiseWeights.EXAMPLE

    asked: QuantiseWeights
    calib: str
    log: Callable[[str], None]

    def run(self, model: ir.Model) -> list[Finding]:
        form.infer(model)  # the places of layers are told by their shapes
        feeds = read_batches(self.calib, model)
        with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
            dense = Replay(model.clone(), feeds, Path(folder) / "dense")
            rounded = Replay(model, feeds, Path(folder) / "rounded")
            given = {"dense": dense, "rounded": rounded, "mask": mask_input(model, ""), "log": self.log}
            return self.asked.on(model, partial(weights.fit, **given))
