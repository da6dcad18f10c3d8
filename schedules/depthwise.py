"""Depthwise convolutions: lanes over channels, a few output pixels in registers, borders clipped.

Each group reads one input channel; ``out_c / in_c`` output channels share it.
"""

from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_spec import Image, anchor, check_weight, placeholder, reduce_axis
from sparsec.schedules.elements import FLOAT32, Element, element


@dataclass(frozen=True)
class Depthwise(Image):
    """``Y[b,i,j,o] = sum_{p,q} X[b, i*s0+p*d0-top, j*s1+q*d1-left, o // (out_c/in_c)] * W[o,p,q]``.

    Shapes as in ``Conv`` with ``groups == in_c``; the weight is ``[out_c, k_h, k_w, 1]``, packed as
    ``[k_h, k_w, out_c]``.  A word holds neighbouring columns of the kernel.
    """

    precision: str = FLOAT32.name

    @property
    def kind(self) -> Element:
        """What is stored and multiplied at this precision."""
        return element(self.precision, "depthwise")

    def weight_args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of the packed array."""
        return [((self.k_h, self.kind.words(self.k_w), self.out_c), self.kind.weight)]

    def pack(self, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Packs ``weight [out_c, k_h, k_w, 1]``; ``kept`` says nothing where there is one channel."""
        check_weight("Depthwise.pack", weight, (self.out_c, self.k_h, self.k_w, 1))
        return (self.kind.packed(np.ascontiguousarray(weight[..., 0].transpose(1, 2, 0), np.float32)),)

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled function ``(X, W, Y)``."""
        kind = self.kind
        x = placeholder(self.x_shape, kind.activation, "X")
        w = placeholder(*self.weight_args()[0], "W")
        kh, kw = reduce_axis(self.k_h, "kh"), reduce_axis(kind.words(self.k_w), "kw")
        axes = [kh, kw] + ([reduce_axis(kind.group, "part")] if kind.group > 1 else [])

        def value(b, i, j, o):
            part = axes[2].var if kind.group > 1 else None
            # Behind the last column there are only weights of 0.
            column = kw.var if part is None else tirx.min(kw.var * kind.group + part, tir.i64(self.k_w - 1))
            ih = i * self.strides[0] + kh * self.dilations[0] - self.pads[0]
            iw = j * self.strides[1] + column * self.dilations[1] - self.pads[1]
            activation = x[b, ih, iw, o // (self.out_c // self.in_c)]
            if any(self.pads):
                bounds = [ih >= 0, ih < self.in_h, iw >= 0, iw < self.in_w]
                padding = tirx.const(self.zero, kind.activation)
                activation = tirx.if_then_else(tirx.all(*bounds), activation, padding)
            product = kind.activation_value(activation) * kind.weight_value(w[kh, kw, o], part)
            return te.sum(product, axis=axes)

        return anchor(self, [x, w], self.y_shape, value)
