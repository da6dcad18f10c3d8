"""Contractions: what they compute, as definitions that any target can schedule.

``Gemm``, ``Conv``, ``Depthwise`` and ``BatchMatmul`` are specs; ``conv`` makes the right one for a
convolution. A spec packs its constant weight (``pack``), says what the packed arrays look like
(``weight_args``), and makes the unscheduled S-TIR function of the contraction (``prim_func``), which is
right as it stands and which FuseOps fuses with the elementwise operators behind it (``op_pattern`` 4).  The
anchor's block carries the spec as an annotation, by which ``find_anchor`` recognises it after fusion.

A spec's ``permute`` says whether it is packed for CPUs that pick activations by a permute (``target.Cpu``),
``panels_only`` that it is packed for GPUs, which have no use for strips.

Parameters of the function, in order: ``X``, the packed weight arrays (values, then what a sparse form needs
to find its inputs, see ``layout`` and ``layout_strips``), ``Y``.  A pruned position is skipped: it turns
``0 * Inf`` and ``0 * NaN`` of the dense weight into 0.

``precision`` says what is stored and multiplied (``elements``).  At ``int8`` X is uint8 and Y int32, the
plain sum of products: what zero points add to it is a constant for each output channel, and the caller's.  So
that it is one, cells in the padding of a window hold ``zero``.
"""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
from tvm import te, tirx

from sparsec.schedules import tir
from sparsec.schedules.batch_matmul import BatchMatmul
from sparsec.schedules.contraction_conv import Conv
from sparsec.schedules.contraction_spec import (
    Words,
    anchor,
    annotated,
    check_weight,
    placeholder,
    strips_sum,
)
from sparsec.schedules.depthwise import Depthwise
from sparsec.schedules.elements import FLOAT32, Element, element, form, stored_pattern
from sparsec.schedules.layout import DENSE, PANEL, Pattern
from sparsec.schedules.layout_strips import Strips, strips_of
from sparsec.schedules.weight_quant import QuantGemm


@dataclass(frozen=True)
class Gemm:
    """``Y[*lead, n] = sum_k X[*lead, k] * W[n, k]``; W is the constant weight ``[n, k]``."""

    lead: tuple[int, ...]
    k: int
    n: int
    pattern: Pattern = DENSE
    permute: bool = True
    precision: str = FLOAT32.name
    panels_only: bool = False

    @property
    def kind(self) -> Element:
        """What is stored and multiplied at this precision."""
        return element(self.precision, "strips" if self.strips else self._form)

    @property
    def packed(self) -> Pattern:
        """The pattern as packed."""
        return stored_pattern(self.precision, self.pattern, self.k, self.permute)

    @property
    def _form(self) -> str:
        return form(self.precision, self.packed, self.k)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.k)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.n)

    @property
    def strips(self) -> Strips | None:
        """The form with lanes over rows, where it is the one to take."""
        if self.panels_only or self.permute and self._form == "words":
            return None
        return strips_of(self.packed, self.n, 1, self.k, math.prod(self.lead), self.permute)

    def weight_args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each packed array."""
        if self.strips:
            return self.strips.args()
        return self.kind.args(self.packed, self.n, (), self.k)

    def pack(self, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Packs ``weight [n, k]``; ``kept`` (bool, same shape) marks the kept positions, else non-zeros."""
        check_weight("Gemm.pack", weight, (self.n, self.k))
        kept = None if kept is None else kept[:, None]
        if self.strips:
            return self.strips.pack(weight[:, None], kept)
        arrays = self.kind.pack(self.packed, weight[:, None], kept)
        return tuple(a.reshape(shape) for a, (shape, _) in zip(arrays, self.weight_args(), strict=True))

    def unpack(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """The dense weight ``[n, k]`` of packed arrays."""
        if self.strips:
            return self.strips.unpack(arrays)[:, 0]
        arrays = tuple(a.reshape(a.shape[0], 1, *a.shape[1:]) for a in arrays)
        return self.kind.unpack(self.packed, arrays, self.n, self.k)[:, 0]

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled function ``(X, W, [I, [S]], Y)``."""
        x = placeholder(self.x_shape, self.kind.activation, "X")
        weights = [placeholder(s, d, name) for (s, d), name in zip(self.weight_args(), "WIS", strict=False)]
        if self.strips:
            return anchor(
                self,
                [x, *weights],
                self.y_shape,
                lambda *i: strips_sum(self.strips, weights, i[-1], lambda _, c: x[(*i[:-1], c)]),
            )
        words = Words(self.kind, self.packed, self.k)

        def value(*i):
            panel, lane = i[-1] // PANEL, i[-1] % PANEL
            channel = words.channel(weights, panel, lane, ())
            return te.sum(words.product(x[(*i[:-1], channel)], weights[0], panel, lane, ()), axis=words.axes)

        return anchor(self, [x, *weights], self.y_shape, value)


def conv(
    batch: int,
    in_h: int,
    in_w: int,
    in_c: int,
    out_c: int,
    k_h: int,
    k_w: int,
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    groups: int = 1,
    pattern: Pattern = DENSE,
    precision: str = FLOAT32.name,
    zero: int = 0,
) -> "Conv | Depthwise":
    """The spec of a convolution: ``Depthwise`` where each group reads one channel, else ``Conv``."""
    window = (batch, in_h, in_w, in_c, out_c, k_h, k_w, strides, dilations, pads)
    if groups == in_c and groups > 1:
        return Depthwise(*window, precision, zero=zero)
    return Conv(*window, groups, pattern, precision=precision, zero=zero)


def packed_for(spec, permute: bool | None):
    """``spec`` as CPUs with or without a permute want it packed, or GPUs (None); itself where it is that."""
    if permute or not getattr(spec, "permute", False):
        return spec
    other = replace(spec, panels_only=True) if permute is None else replace(spec, permute=False)
    return spec if (other.strips, other.packed) == (spec.strips, spec.packed) else other


Spec = Gemm | Conv | Depthwise | BatchMatmul | QuantGemm
KINDS = {kind.__name__: kind for kind in (Gemm, Conv, Depthwise, BatchMatmul, QuantGemm)}


def find_anchor(func: tirx.PrimFunc) -> tuple[Spec, tir.Block] | None:
    """The contraction's spec and block in a function before or after fusion, or None."""
    found = annotated(func)
    if found is None:
        return None
    text, block = found
    # Products for tensor cores are of no kind of these.
    return (from_text(text), block) if json.loads(text)["kind"] in KINDS else None


def from_text(text: str) -> Spec:
    """The spec that ``contraction_spec.to_text`` wrote."""
    fields = json.loads(text)
    kind = KINDS[fields.pop("kind")]
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    if "pattern" in fields:
        fields["pattern"] = Pattern(**fields["pattern"])
    return kind(**fields)
