"""What a layer with a constant weight can run as on a GPU, and how long each takes, counted.

A form takes as long as its multiply-adds or the bytes of its weight and activations, whichever is more: what
the limits of the device say, which kernels of all forms come as near to as each other.  Nothing is measured.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from sparsec.schedules.contraction import Conv, Gemm
from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.target import Architecture
from sparsec.schedules.cuda.tensor_gemm import PRECISIONS, why_not
from sparsec.schedules.elements import FLOAT32

#: The smallest block whose channels have one list of positions in the packed forms of float32.
SHARED = 16
#: Rows that a product on tensor cores computes at least.
_TENSOR_ROWS = 16


@dataclass(frozen=True)
class Form:
    """``kernel``: "sparse" or "dense"; ``kept``: the part of the products that it does.

    ``weight_bytes``: those of one position of the dense weight on average; ``input_bytes``: of an activation.
    """

    name: str
    precision: str
    kernel: str
    kept: float
    weight_bytes: float
    input_bytes: int
    tensor: bool

    def seconds(self, spec: Gemm | Conv, device: Architecture) -> float:
        rows, n = prod(spec.y_shape[:-1]), spec.y_shape[-1]
        weight = n * (spec.k if isinstance(spec, Gemm) else spec.k_h * spec.k_w * spec.depth)
        moved = weight * self.weight_bytes + prod(spec.x_shape) * self.input_bytes + rows * n * 4
        products = weight * self.kept * (max(rows, _TENSOR_ROWS) if self.tensor else rows)
        rate = device.tensor * 2 / self.input_bytes if self.tensor else device.fp32
        return max(products / rate, moved / device.bandwidth)


def forms(spec, weight: np.ndarray, dtype: str | None) -> list[Form]:
    """All forms of a layer, that of float32 without zeros skipped first; ``dtype`` as in ``PRECISIONS``."""
    pattern = spec.pattern
    made = [Form("dense float32", FLOAT32.name, "dense", 1, 4, 4, False)]
    if not pattern.dense and pattern.block % SHARED == 0 and not pattern.scattered:
        kept = pattern.n / pattern.m
        made.append(
            Form(f"{pattern.n}:{pattern.m} float32", FLOAT32.name, "sparse", kept, 4 * kept, 4, False)
        )
    if dtype is None or why_not(spec):
        return made
    precision = next(name for name, number in PRECISIONS.items() if number == dtype)
    size = fragments.NUMBERS[dtype].bytes
    made.append(Form(f"dense {precision}", precision, "dense", 1, size, size, True))
    if size == 2 and not pattern.dense and fragments.fits(weight):
        # A value in two, and two bits for it.
        made.append(Form(f"2:4 {precision}", precision, "sparse", 0.5, size / 2 + 1 / 8, size, True))
    return made
