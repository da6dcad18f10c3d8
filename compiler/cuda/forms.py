"""What a layer with a constant weight can run as on a GPU, and how long each takes, counted.

A form takes as long as its multiply-adds or the bytes of its weight and activations, whichever is more: what
the limits of the device say, which kernels of all forms come as near to as each other.  Nothing is measured.
"""

from dataclasses import dataclass
from math import prod

from sparsec.schedules.contraction import Conv, Gemm, packed_for
from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.contraction_tile import Layer
from sparsec.schedules.cuda.target import Architecture
from sparsec.schedules.cuda.tensor_gemm import PRECISIONS, picks_of, why_not
from sparsec.schedules.cuda.vector_tile import MOST_ROWS, Cut
from sparsec.schedules.elements import FLOAT32
from sparsec.schedules.layout import DENSE

#: Products that a multiprocessor does while it reads as many words of shared memory as it has lanes.
_PRODUCTS_PER_WORD = 4
#: Bytes of the position of a stored value, by packed form.
_POSITIONS = {"shared": 0, "lanes": 0.5, "gather": 2}
#: Cycles of a fragment's products on tensor cores, and of a byte permute; permutes for each word that lanes
#: pick among so many inputs, for all bands of channels that share their zeros.
_FRAGMENT, _PERMUTE = 8, 2
_PERMUTES = {8: 3, 16: 7}
#: Rows that a product on tensor cores computes at least.
_TENSOR_ROWS = 16


@dataclass(frozen=True)
class Form:
    """``kernel``: "sparse" or "dense"; ``kept``: the part of the products that it does.

    ``weight_bytes``: those of one position of the dense weight on average; ``input_bytes``: of an activation.
    ``drag``: how much longer a product takes where inputs are read one by one.
    """

    name: str
    precision: str
    kernel: str
    kept: float
    weight_bytes: float
    input_bytes: int
    tensor: bool
    drag: float = 1

    def seconds(self, spec, weight: int, device: Architecture) -> float:
        """Of one product, which has ``weight`` positions in its dense weight."""
        rows, n = prod(spec.y_shape[:-1]), spec.y_shape[-1]
        moved = weight * self.weight_bytes + prod(spec.x_shape) * self.input_bytes + rows * n * 4
        products = weight * self.kept * (max(rows, _TENSOR_ROWS) if self.tensor else rows)
        rate = device.tensor * 2 / self.input_bytes if self.tensor else device.fp32
        return max(products * self.drag / rate, moved / device.bandwidth)


def forms(made: list[tuple], dtype: str | None) -> list[Form]:
    """All forms that the products of a layer can have, dense float32 first.

    ``dtype``: what tensor cores are to multiply, one of ``NUMBERS``; None where they are not.
    """
    pattern = getattr(made[0][0], "pattern", DENSE)
    found = [Form("dense float32", FLOAT32.name, "dense", 1, 4, 4, False)]
    if not pattern.dense and why_dense(made) is None:
        picked = [_picked(spec) for spec, _ in made]
        kept, form = pattern.n / pattern.m, picked[0].pattern.form(picked[0].channels)
        size = (4 + _POSITIONS[form]) * kept if form != "dense" else 4
        drag = max(1, _PRODUCTS_PER_WORD / min(one.share for one in picked))
        name = f"{pattern.n}:{pattern.m} float32"
        found.append(Form(name, FLOAT32.name, "sparse", kept, size, 4, False, drag))
    if dtype is None or any(why_not(spec) for spec, _ in made):
        return found
    precision = next(name for name, number in PRECISIONS.items() if number == dtype)
    size = fragments.NUMBERS[dtype].bytes
    found.append(Form(f"dense {precision}", precision, "dense", 1, size, size, True))
    picks = [picks_of(spec, dtype) for spec, _ in made]
    if all(picks):
        (one, *_), name = picks, f"{pattern.n}:{pattern.m} {precision}"
        kept, words = one.n / one.m, one.metadata / (fragments.ROWS * fragments.NUMBERS[dtype].block)
        permutes = one.words * (_PERMUTES[one.among] * _PERMUTE)
        drag = max(1, permutes / (one.share * one.steps * _FRAGMENT))
        found.append(Form(name, precision, "sparse", kept, size * kept + words * 4, size, True, drag))
    elif size == 2 and not pattern.dense and all(fragments.fits(weight) for _, weight in made):
        # A value in two, and two bits for it.
        found.append(Form(f"2:4 {precision}", precision, "sparse", 0.5, size / 2 + 1 / 8, size, True))
    return found


def why_dense(made: list[tuple]) -> str | None:
    """Why no kernel of float32 skips the zeros of a layer, or None."""
    found = (_picked(spec) for spec, _ in made)
    return next((reason for reason in found if isinstance(reason, str)), None)


def _picked(spec) -> Cut | Layer | str:
    """How the kernel of float32 picks what the stored weights multiply; the reason where there is none."""
    if not isinstance(spec, Gemm | Conv):
        return f"a {type(spec).__name__}"
    if spec.pattern.scattered:
        return "its zeros lie anywhere"
    packed = packed_for(spec, None)
    if isinstance(spec, Gemm) and prod(spec.lead) <= MOST_ROWS:
        return Cut.of(packed)
    return Layer.of(packed)
