"""What a layer with a constant weight can run as on a GPU, and how long each takes, counted.

A form takes as long as its multiply-adds or the bytes of its weight and activations, whichever is more: what
the limits of the device say, which kernels of all forms come as near to as each other.  Nothing is measured.
"""

from dataclasses import dataclass
from math import prod

from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.target import Architecture
from sparsec.schedules.cuda.tensor_gemm import PRECISIONS, why_not
from sparsec.schedules.elements import FLOAT32
from sparsec.schedules.layout import DENSE

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

    def seconds(self, spec, weight: int, device: Architecture) -> float:
        """Of one product, which has ``weight`` positions in its dense weight."""
        rows, n = prod(spec.y_shape[:-1]), spec.y_shape[-1]
        moved = weight * self.weight_bytes + prod(spec.x_shape) * self.input_bytes + rows * n * 4
        products = weight * self.kept * (max(rows, _TENSOR_ROWS) if self.tensor else rows)
        rate = device.tensor * 2 / self.input_bytes if self.tensor else device.fp32
        return max(products / rate, moved / device.bandwidth)


def forms(made: list[tuple], dtype: str | None) -> list[Form]:
    """All forms that the products of a layer can have, dense float32 first.

    ``dtype``: what tensor cores are to multiply, one of ``NUMBERS``; None where they are not.
    """
    pattern = getattr(made[0][0], "pattern", DENSE)
    found = [Form("dense float32", FLOAT32.name, "dense", 1, 4, 4, False)]
    if not pattern.dense and pattern.block % SHARED == 0 and not pattern.scattered:
        kept = pattern.n / pattern.m
        found.append(
            Form(f"{pattern.n}:{pattern.m} float32", FLOAT32.name, "sparse", kept, 4 * kept, 4, False)
        )
    if dtype is None or any(why_not(spec) for spec, _ in made):
        return found
    precision = next(name for name, number in PRECISIONS.items() if number == dtype)
    size = fragments.NUMBERS[dtype].bytes
    found.append(Form(f"dense {precision}", precision, "dense", 1, size, size, True))
    if size == 2 and not pattern.dense and all(fragments.fits(weight) for _, weight in made):
        # A value in two, and two bits for it.
        found.append(Form(f"2:4 {precision}", precision, "sparse", 0.5, size / 2 + 1 / 8, size, True))
    return found
