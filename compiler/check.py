"""Is a compiled model right?  Its outputs against ONNX Runtime's."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparsec.compiler import reference
from sparsec.compiler.errors import CompileError
from sparsec.compiler.reference import Difference
from sparsec.runtime import load


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


def receipt(artifact: Path, model: str | bytes, feeds: dict, calibrated: bool) -> dict:
    """The receipt of ``artifact`` against ONNX Runtime on ``model``; raises where it is not within."""
    with load(artifact) as loaded:
        found, spread = differences(loaded(feeds), model, feeds)
    require_within(found, "")
    return {
        "input": "calibration data" if calibrated else f"random, seed {reference.SEED}",
        "tolerance": {"relative": reference.RELATIVE, "absolute": reference.ABSOLUTE},
        "reference_spread": spread,
        "max_error": {name: difference.to_json() for name, difference in found.items()},
    }
