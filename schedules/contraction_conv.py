"""Convolutions over channels-last activations: the spec, the packing, the definition."""

from dataclasses import dataclass, replace

import numpy as np
from tvm import te, tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_spec import (
    Image,
    Words,
    anchor,
    check_weight,
    placeholder,
    reduce_axis,
    strips_sum,
)
from sparsec.schedules.elements import FLOAT32, Element, element, form, stored_pattern
from sparsec.schedules.layout import DENSE, PANEL, Pattern, panels
from sparsec.schedules.layout_strips import Strips, strips_of


@dataclass(frozen=True)
class Conv(Image):
    """``Y[b,i,j,o] = sum_{p,q,c} X[b, i*s0+p*d0-top, j*s1+q*d1-left, g*in_c/groups+c] * W[o,p,q,c]``.

    X is ``[batch, in_h, in_w, in_c]``, Y ``[batch, out_h, out_w, out_c]``, the weight ``[out_c, k_h, k_w,
    in_c/groups]``; ``pads`` are (top, left, bottom, right) rows and columns of ``zero``, as in ONNX.  A
    convolution in one dimension has height 1.
    """

    groups: int = 1
    pattern: Pattern = DENSE
    permute: bool = True
    precision: str = FLOAT32.name
    panels_only: bool = False

    def __post_init__(self):
        if self.in_c % self.groups or self.out_c % self.groups:
            raise ValueError(
                f"Conv: required channels that {self.groups} groups divide, found {self.in_c} in and "
                f"{self.out_c} out; correct the group count"
            )
        if self.out_h < 1 or self.out_w < 1:
            raise ValueError(
                f"Conv: required a window within the padded input, found an output of "
                f"{self.out_h}x{self.out_w}; correct the kernel, dilations or pads"
            )

    @property
    def kind(self) -> Element:
        """What is stored and multiplied at this precision."""
        return element(self.precision, "strips" if self.strips else self._form)

    @property
    def pointwise(self) -> bool:
        """Whether this is a matrix product over the pixels."""
        window = (self.k_h, self.k_w, *self.strides, self.groups)
        return window == (1, 1, 1, 1, 1) and not any(self.pads)

    @property
    def depth(self) -> int:
        """Input channels that one output channel reads, per tap."""
        return self.in_c // self.groups

    @property
    def group_panels(self) -> int:
        """Panels of one group; the last one of each group is padded."""
        return panels(self.out_c // self.groups)

    @property
    def packed(self) -> Pattern:
        """The pattern as packed, where groups are padded to whole panels.

        Channels that are all of a group share what its panels read; a block that would straddle two groups
        is stored per channel.
        """
        own, padded, block = self.out_c // self.groups, self.group_panels * PANEL, self.pattern.block
        pattern = self.pattern
        if self.groups > 1 and not pattern.dense:
            if own <= block and not pattern.scattered:
                block = padded
            pattern = replace(pattern, block=1 if padded % block else block)
        return stored_pattern(self.precision, pattern, self.depth, self.permute)

    @property
    def _form(self) -> str:
        return form(self.precision, self.packed, self.depth)

    @property
    def strips(self) -> Strips | None:
        """The form with lanes over rows, where it is the one to take; the rows are pixels."""
        if self.panels_only or self.permute and self._form == "words":
            return None
        rows = self.batch * self.out_h * self.out_w
        return strips_of(self.packed, self._padded_out, self.k_h * self.k_w, self.depth, rows, self.permute)

    def weight_args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each packed array."""
        if self.strips:
            return self.strips.args()
        return self.kind.args(self.packed, self._padded_out, (self.k_h, self.k_w), self.depth)

    @property
    def _padded_out(self) -> int:
        return self.out_c if self.groups == 1 else self.groups * self.group_panels * PANEL

    def pack(self, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Packs ``weight [O, k_h, k_w, in_c/groups]``; ``kept`` (bool) marks positions, else non-zeros."""
        check_weight("Conv.pack", weight, (self.out_c, self.k_h, self.k_w, self.depth))
        flat = self._pad_groups(weight)
        kept = None if kept is None else self._pad_groups(kept)
        if self.strips:
            return self.strips.pack(flat, kept)
        arrays = self.kind.pack(self.packed, flat, kept)
        return tuple(a.reshape(shape) for a, (shape, _) in zip(arrays, self.weight_args(), strict=True))

    def _pad_groups(self, weight: np.ndarray) -> np.ndarray:
        flat = weight.reshape(self.groups, -1, self.k_h * self.k_w, self.depth)
        extra = self._padded_out // self.groups - flat.shape[1]
        return np.pad(flat, ((0, 0), (0, extra), (0, 0), (0, 0))).reshape(-1, *flat.shape[2:])

    def unpack(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """The dense weight ``[O, k_h, k_w, in_c/groups]`` of packed arrays."""
        taps = self.k_h * self.k_w
        if self.strips:
            flat = self.strips.unpack(arrays)
        else:
            arrays = tuple(a.reshape(a.shape[0], taps, *a.shape[3:]) for a in arrays)
            flat = self.kind.unpack(self.packed, arrays, self._padded_out, self.depth)
        flat = flat.reshape(self.groups, -1, taps, self.depth)[:, : self.out_c // self.groups]
        return flat.reshape(self.out_c, self.k_h, self.k_w, self.depth)

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled function ``(X, W, [I, [S]], Y)``."""
        x = placeholder(self.x_shape, self.kind.activation, "X")
        weights = [placeholder(s, d, name) for (s, d), name in zip(self.weight_args(), "WIS", strict=False)]
        own = self.out_c // self.groups

        def activation(b, i, j, group, p, q, channel):
            ih = i * self.strides[0] + p * self.dilations[0] - self.pads[0]
            iw = j * self.strides[1] + q * self.dilations[1] - self.pads[1]
            value = x[b, ih, iw, group * self.depth + channel]
            if not any(self.pads):
                return value
            bounds = [ih >= 0, ih < self.in_h, iw >= 0, iw < self.in_w]
            return tirx.if_then_else(tirx.all(*bounds), value, tirx.const(self.zero, self.kind.activation))

        def in_group(o):
            return (o // own, o % own) if self.groups > 1 else (tir.i64(0), o)

        def by_strips(b, i, j, o):
            group, inside = in_group(o)

            def at(tap, channel):
                return activation(b, i, j, group, tap // self.k_w, tap % self.k_w, channel)

            return strips_sum(self.strips, weights, group * self.group_panels * PANEL + inside, at)

        def by_panels(b, i, j, o):
            group, inside = in_group(o)
            panel, lane = group * self.group_panels + inside // PANEL, inside % PANEL
            kh, kw = reduce_axis(self.k_h, "kh"), reduce_axis(self.k_w, "kw")
            words, taps = Words(self.kind, self.packed, self.depth), (kh.var, kw.var)
            value = activation(b, i, j, group, *taps, words.channel(weights, panel, lane, taps))
            product = words.product(value, weights[0], panel, lane, taps)
            return te.sum(product, axis=[kh, kw, *words.axes])

        return anchor(self, [x, *weights], self.y_shape, by_strips if self.strips else by_panels)
