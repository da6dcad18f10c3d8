"""The sample of an exportable artifact: an input, ONNX Runtime's output, what an output may differ by.

``sample.bin`` is, little-endian and without gaps: for each output a float64, the largest allowed absolute
error (0 where values must be equal); the data of each input; the data of each output.
"""

from collections.abc import Mapping

import numpy as np

from . import reference
from .check import Oracle
from .plan import Plan


def make(model: str | bytes, feeds: Mapping[str, np.ndarray], plan: Plan, precision: str = "fp32") -> bytes:
    """The sample of ``model``, a path or serialised: a new context's first run on ``feeds``."""
    new = {state.port.name: np.zeros_like(feeds[state.port.name]) for state in plan.states}
    oracle = Oracle(model, {**feeds, **new}, precision)
    expected = {port.name: np.ascontiguousarray(oracle.expected[port.name]) for port in plan.outputs}
    limits = [allowed(array, oracle.spread.get(name, 0.0), precision) for name, array in expected.items()]
    given = [np.ascontiguousarray(feeds[port.name], port.dtype) for port in plan.inputs]
    data = [array.tobytes() for array in (*given, *expected.values())]
    return np.array(limits, "<f8").tobytes() + b"".join(data)


def allowed(expected: np.ndarray, spread: float, precision: str = "fp32") -> float:
    """The tolerance of ``reference.compare`` as one number."""
    if not reference.measured(expected.dtype, precision):
        return 0.0 if precision == "fp32" else float("inf")
    return reference.tolerance(expected, spread, precision)
