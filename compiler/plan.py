"""The static plan of a compiled model: which kernel runs when, on which bytes.

A plan is data, not code.  ``compiler/native.py`` writes it as C tables next to the kernels, and the
C core in ``runtime/c`` walks them.  Every tensor lives in one of six spaces:

========  ==========================================================================
input     a caller's buffer; ``where`` is the input's position
output    a caller's buffer; ``where`` is the output's position
past      a state as the last run left it; ``where`` is the state's position
present   a state as this run makes it; ``where`` is the state's position
weight    ``weights.bin``; ``where`` is a byte offset, a multiple of ``ALIGN``
arena     the context's scratch memory; ``where`` is a byte offset, a multiple of ``ALIGN``
========  ==========================================================================
"""

from dataclasses import dataclass, field

ALIGN = 64  # bytes: one cache line and one AVX-512 register


@dataclass(frozen=True)
class TensorRef:
    """A dense, row-major tensor in a space; ``shape`` in elements, ``dtype`` in NumPy's spelling."""

    space: str
    where: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Step:
    """One kernel call: ``symbol`` is the exported PrimFunc, ``label`` names the ONNX nodes it covers."""

    symbol: str
    args: tuple[TensorRef, ...]
    label: str


@dataclass(frozen=True)
class Port:
    """A model input or output.  ``dims`` keeps the source model's symbolic names beside ``shape``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str | int, ...]


@dataclass(frozen=True)
class State:
    """An input that the model's own ``output`` feeds in the next run; neither is a port of the plan.

    ``port``: the input, whose name is the state's.
    """

    port: Port
    output: str


@dataclass(frozen=True)
class Plan:
    """Everything the runtime must know; ``weights`` is the content of ``weights.bin``."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]
    arena_size: int
    weights: bytes | bytearray = field(repr=False)
    states: tuple[State, ...] = ()
