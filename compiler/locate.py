"""Where a compiled model parts from ONNX Runtime: layer by layer, in the order of execution."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec.compiler import check
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.reference import Difference
from sparsec.compiler.request import CompileRequest
from sparsec.runtime import load


def first_divergence(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> tuple[str, str, Difference] | None:
    """The first node, in the order of execution, whose own output differs: ``(op, node, difference)``.

    ``model`` is ingested, with its passes applied; it gets every intermediate value as an output and is
    compiled anew for this machine, so kernels are fused less than in the artifact.  None means that no
    layer differs by itself.
    """
    outputs = {value.name for value in model.graph.outputs}
    nodes = list(model.graph)
    for node in nodes:
        model.graph.outputs.extend(v for v in node.outputs if v.name and v.name not in outputs and v.uses())
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        source, artifact = Path(folder) / "layers.onnx", Path(folder) / "layers.sparsec"
        ir.save(model, source)
        compile_model(CompileRequest(str(source), str(artifact), target="native", verify=False))
        with load(artifact) as loaded:
            result = check.Oracle(str(source), feeds).differences(loaded(dict(feeds)))
    for node in nodes:
        for value in node.outputs:
            if value.name in result and not result[value.name].within:
                return node.op_type, node.name, result[value.name]
    return None
