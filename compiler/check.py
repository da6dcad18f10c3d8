"""Is a compiled model right?  Its outputs against ONNX Runtime's, and where they part if they do."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec.compiler import reference
from sparsec.compiler.errors import CompileError
from sparsec.compiler.reference import Difference


def differences(
    found: Mapping[str, np.ndarray], model: str | bytes, feeds: Mapping[str, np.ndarray]
) -> tuple[dict[str, Difference], dict[str, float]]:
    """How far each of ``found`` is from ONNX Runtime's output on ``model`` (a path or serialised).

    Second, ONNX Runtime's distance to itself without its optimisations, by float output: it is measured
    only where the plain tolerance is missed, and widens it (``reference.SPREAD``).
    """
    expected = reference.run_reference(model, feeds)
    result = {name: reference.compare(found[name], array) for name, array in expected.items()}
    spread: dict[str, float] = {}
    if all(difference.within for difference in result.values()):
        return result, spread
    again = reference.run_reference(model, feeds, optimised=False)
    for name, array in expected.items():
        if array.dtype.kind == "f":
            spread[name] = reference.compare(again[name], array).max_abs
            result[name] = reference.compare(found[name], array, spread[name])
        elif not result[name].within:  # its fused integer kernels round otherwise than its own operators
            result[name] = reference.compare(found[name], again[name])
    return result, spread


def require_within(differences: Mapping[str, Difference], stage: str) -> None:
    """Raise CompileError for the first output that is not within; ``stage`` says of what it is."""
    for name, difference in differences.items():
        if not difference.within:
            raise CompileError(
                f"output '{name}'{stage} differs from ONNX Runtime by {difference.max_abs:.3g} on a scale of "
                f"{difference.scale:.3g}; nothing was published. --dump-dir D keeps every stage, "
                "--no-verify publishes all the same"
            )


def same_model(ingested: bytes, source: str, feeds: Mapping[str, np.ndarray]) -> None:
    """Raise CompileError where the ingested model does not compute what the source file computes."""
    result, _ = differences(reference.run_reference(ingested, feeds), source, feeds)
    require_within(result, " of the model as it was read")


def first_divergence(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> tuple[str, str, Difference] | None:
    """The first node, in the order of execution, whose own output differs: ``(op, node, difference)``.

    ``model`` is ingested, with its passes applied; it gets every intermediate value as an output and is
    compiled anew for this machine, so kernels are fused less than in the artifact.  None means that no
    layer differs by itself.
    """
    from sparsec.compiler.pipeline import compile_model  # the pipeline checks what it made, so it comes first
    from sparsec.compiler.request import CompileRequest
    from sparsec.runtime import load

    outputs = {value.name for value in model.graph.outputs}
    nodes = list(model.graph)
    for node in nodes:
        model.graph.outputs.extend(v for v in node.outputs if v.name and v.name not in outputs and v.uses())
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        source, artifact = Path(folder) / "layers.onnx", Path(folder) / "layers.sparsec"
        ir.save(model, source)
        compile_model(CompileRequest(str(source), str(artifact), target="native", verify=False))
        with load(artifact) as loaded:
            result, _ = differences(loaded(dict(feeds)), str(source), feeds)
    for node in nodes:
        for value in node.outputs:
            if value.name in result and not result[value.name].within:
                return node.op_type, node.name, result[value.name]
    return None
