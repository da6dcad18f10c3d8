"""The sample of an exportable artifact: an input, ONNX Runtime's output, what an output may differ by.

``sample.bin`` is, little-endian and without gaps: for each output a float64, the largest allowed absolute
error (0 where values must be equal); the data of each input; the data of each output.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from . import reference
from .check import Oracle
from .plan import Port

MEMBER = "sample.bin"


def make(
    oracle: Oracle, feeds: Mapping[str, np.ndarray], inputs: Sequence[Port], outputs: Sequence[Port]
) -> bytes:
    """The sample of a model with these ports, ``oracle`` and its ``feeds``."""
    expected = [np.ascontiguousarray(oracle.expected[port.name]) for port in outputs]
    limits = [
        allowed(array, oracle.spread.get(port.name, 0.0))
        for port, array in zip(outputs, expected, strict=True)
    ]
    values = [np.ascontiguousarray(feeds[port.name], port.dtype) for port in inputs] + expected
    return np.array(limits, "<f8").tobytes() + b"".join(value.tobytes() for value in values)


def allowed(expected: np.ndarray, spread: float) -> float:
    """The tolerance of ``reference.compare`` as one number."""
    if expected.dtype.kind != "f":
        return 0.0
    return reference.tolerance(expected, spread)
