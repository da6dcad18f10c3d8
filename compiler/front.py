"""The first stages of every compilation, whatever the target: read the model, find and insert sparsity."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec import passes
from sparsec.compiler import check, reference
from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.dump import Dump
from sparsec.compiler.ingest import SOURCE_DIMS, ingest
from sparsec.compiler.plan import Port
from sparsec.compiler.request import CompileRequest, gpu_names
from sparsec.compiler.weight_quant import calibrated


@dataclass
class Source:
    """A model that is ready to be lowered, and what it is compared with.

    ``request``: what was asked for, with the precision of each layer settled.
    ``plain``: the model as it was read, where passes were asked to change it.  ``meant``: what the result
    must compute, a path or a serialised model.  ``feeds``: inputs for the comparison.
    """

    model: ir.Model
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    findings: list[passes.Finding]
    feeds: dict[str, np.ndarray]
    plain: bytes | None
    meant: str | bytes
    sha256: str
    request: CompileRequest
    plan: dict | None

    def require_read(self, request: CompileRequest) -> None:
        """Raise CompileError where the file was read wrongly: what inserted passes change would hide it."""
        if self.plain:
            check.same_model(self.plain, request.model, self.feeds)


def read_model(request: CompileRequest, pipeline, stages: "Stages", dump: Dump) -> Source:
    """Read, change as ``pipeline`` says, and lay out channels-last the model of ``request``."""
    # Imported here: both compile and run models themselves.
    from sparsec.compiler.mixed.allocate import allocate
    from sparsec.compiler.quantize import QuantizeRequest, quantize_model

    with stages("read the model"):
        integers = not gpu_names(request.target)  # kernels for GPUs multiply floats
        model = ingest(request.model, request.shapes, request.dims, integers=integers, log=stages.log)
        inputs, outputs = ports(model.graph.inputs), ports(model.graph.outputs)
        sha256 = hashlib.sha256(Path(request.model).read_bytes()).hexdigest()
        dump.onnx("ingested", model)
    rounds = request.allocates or (request.precision == "int8" and not request.settled)
    plain = serialised(model) if (pipeline or rounds) and request.verify else None
    findings, meant, plan = [], None if pipeline else request.model, None
    if rounds and pipeline:
        with stages("insert sparsity"):
            findings += passes.run_pipeline(model, pipeline, integers=False)
            pipeline = ()
    if request.allocates:
        with stages("choose precisions"):
            made = allocate(model, request, stages.log)
        model, meant, plan = made.trial.model, made.trial.meant, made.plan
        findings += made.findings
        request = replace(request, precision=made.trial.precision, bfloat16=made.trial.bfloat16)
        dump.onnx("allocated", model)
    elif rounds:
        with stages("quantise"):
            findings += quantize_model(model, QuantizeRequest(request.calib), stages.log).findings
        dump.onnx("quantised", model)
        meant = serialised(model)
    with stages("find and insert sparsity"):
        asked = calibrated(pipeline, request.calib, stages.log)
        findings += passes.run_pipeline(model, asked, integers=integers)
        dump.onnx("passes", model)
        meant = meant or serialised(model)
        feeds = (
            reference.calibration_inputs(request.calib, inputs)
            if request.calib
            else reference.random_inputs(model, inputs)
        )
    with stages("lay out channels-last"):
        channels_last(model)
        dump.onnx("channels_last", model)
    return Source(model, inputs, outputs, findings, feeds, plain, meant, sha256, request, plan)


def ports(values) -> tuple[Port, ...]:
    """Inputs or outputs with the dims that the source model declares for them."""
    result = []
    for value in values:
        shape = tuple(int(d) for d in value.shape)
        named = json.loads(value.metadata_props.get(SOURCE_DIMS, "null")) or shape
        dims = tuple(size if dim is None else dim for dim, size in zip(named, shape, strict=True))
        result.append(Port(value.name, str(value.dtype.numpy()), shape, dims))
    return tuple(result)


def serialised(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


class Stages:
    """Times the stages, and says each one as it begins."""

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self.done: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, name: str):
        self.log(name)
        start = time.perf_counter()
        yield
        self.done.append((name, round(time.perf_counter() - start, 3)))
