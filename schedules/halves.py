"""16-bit floating-point formats as values lie in memory: bit patterns, uint16, so that no pass rewrites them.

``bits`` says what the formats are, and has them for NumPy.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sparsec.schedules import elements, math


@dataclass(frozen=True)
class Half:
    """``narrowed(x)`` is the bit pattern nearest to a float32 expression, ``widened(bits)`` the way back."""

    name: str
    narrowed: Callable
    widened: Callable


BFLOAT16 = Half("bfloat16", elements.narrowed, elements.widened)
FLOAT16 = Half("float16", math.to_float16, math.from_float16)
HALVES = {half.name: half for half in (BFLOAT16, FLOAT16)}
