"""Which pixels of a window lie inside the input: what convolution kernels clip instead of padding.

``spec`` is a ``Conv`` or ``Depthwise`` throughout.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_tile import even_split


@dataclass(frozen=True)
class PixelRun:
    """``count`` neighbouring tiles of ``width`` output pixels from ``start`` on.

    ``valid[q]`` lists the pixels of a tile for which kernel column ``q`` lies inside the input.
    """

    start: int
    count: int
    width: int
    valid: tuple[tuple[int, ...], ...]

    @property
    def interior(self) -> bool:
        return all(len(pixels) == self.width for pixels in self.valid)


def pixel_runs(spec, most: int) -> list[PixelRun]:
    """Cuts an output row into tiles of at most ``most`` pixels, equal neighbours in one run."""
    runs: list[PixelRun] = []
    for first, count, width in even_split(spec.out_w, most):
        for start in range(first, first + count * width, width):
            valid = tuple(
                tuple(r for r in range(width) if 0 <= _input_column(spec, start + r, q) < spec.in_w)
                for q in range(spec.k_w)
            )
            last = runs[-1] if runs else None
            if last and (last.width, last.valid) == (width, valid):
                runs[-1] = PixelRun(last.start, last.count + 1, width, valid)
            else:
                runs.append(PixelRun(start, 1, width, valid))
    return runs


def _input_column(spec, pixel: int, q: int) -> int:
    return pixel * spec.strides[1] + q * spec.dilations[1] - spec.pads[1]


def pixel(spec, b, i, j, p, q) -> tuple[list, tir.Expr | None]:
    """The input pixel of tap ``(p, q)`` of output pixel ``(b, i, j)``, else the nearest; whether it exists.

    The second is None where no tap leaves the input.
    """
    ih = i * spec.strides[0] + p * spec.dilations[0] - spec.pads[0]
    iw = j * spec.strides[1] + q * spec.dilations[1] - spec.pads[1]
    if not any(spec.pads):
        return [b, ih, iw], None
    inside = tirx.all(ih >= 0, ih < spec.in_h, iw >= 0, iw < spec.in_w)
    nearest = [
        tirx.max(tirx.min(at, tir.i64(size - 1)), tir.i64(0))
        for at, size in ((ih, spec.in_h), (iw, spec.in_w))
    ]
    return [b, *nearest], inside


def clipped_rows(spec, i, body: Callable) -> tir.Stmt:
    """``body(p)`` for the kernel rows ``p`` that lie inside the input at output row ``i``."""
    stride, dilation = spec.strides[0], spec.dilations[0]
    top = i * stride - spec.pads[0]
    if spec.pads[0] == 0 and spec.pads[2] == 0:
        return tir.loop("p", spec.k_h, body)
    # p * dilation >= -top, and top + p * dilation <= in_h - 1.
    low = tirx.max(tirx.floordiv(tir.i64(dilation - 1) - top, tir.i64(dilation)), tir.i64(0))
    high = tirx.min(tirx.floordiv(tir.i64(spec.in_h - 1) - top, tir.i64(dilation)) + 1, tir.i64(spec.k_h))
    return tir.loop("p", tirx.max(high - low, tir.i64(0)), body, start=low)
