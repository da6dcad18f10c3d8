"""Contractions with a constant weight: what they compute, as definitions that any target can schedule.

``Gemm`` and ``Conv`` are specs.  A spec packs its weight (``pack``), says what the packed arrays look like
(``weight_args``), and makes the unscheduled S-TIR function of the contraction (``prim_func``), which is right as
it stands and which FuseOps fuses with the elementwise operators behind it (``op_pattern`` 4).  The anchor's block
carries the spec as an annotation, by which ``find_anchor`` recognises it after fusion.

Parameters of the function, in order: ``X``, the packed weight arrays (values, then the index of an N:M form, see
``schedules.layout``), ``Y``.  All activations are float32.
"""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from sparsec.schedules import tir
from sparsec.schedules.layout import DENSE, PANEL, Pattern, pack, shapes, unpack

ANNOTATION = "sparsec.contraction"


@dataclass(frozen=True)
class Gemm:
    """``Y[*lead, n] = sum_k X[*lead, k] * W[n, k]``; W is the constant weight ``[n, k]``."""

    lead: tuple[int, ...]
    k: int
    n: int
    pattern: Pattern = DENSE

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.k)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.n)

    @property
    def taps(self) -> tuple[int, ...]:
        return ()

    @property
    def depth(self) -> int:
        """Input channels that one output channel reads, per tap."""
        return self.k

    @property
    def rows(self) -> int:
        return int(np.prod(self.lead, dtype=np.int64))

    def weight_args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each packed array."""
        return shapes(self.pattern, self.n, (), self.k)

    def pack(self, weight: np.ndarray, kept: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Packs ``weight [n, k]``; ``kept`` (bool, same shape) marks the pattern's positions, else the non-zeros."""
        _check_shape("Gemm.pack", weight, (self.n, self.k))
        arrays = pack(self.pattern, weight[:, None], None if kept is None else kept[:, None])
        return tuple(a.reshape(shape) for a, (shape, _) in zip(arrays, self.weight_args(), strict=True))

    def unpack(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        arrays = tuple(a.reshape(a.shape[0], 1, *a.shape[1:]) for a in arrays)
        return unpack(self.pattern, arrays, self.n, self.k)[:, 0]

    def prim_func(self) -> tirx.PrimFunc:
        x = _placeholder(self.x_shape, "float32", "X")
        weights = [_placeholder(s, d, name) for (s, d), name in zip(self.weight_args(), "WI", strict=False)]
        k = te.reduce_axis((tir.i64(0), tir.i64(self.pattern.kept(self.k))), name="k")

        def value(*i):
            channel = stored_channel(self.pattern, weights, i[-1], (), k.var, self.k)
            return te.sum(x[(*i[:-1], channel)] * weights[0][i[-1] // PANEL, k, i[-1] % PANEL], axis=[k])

        return _anchor(self, [x, *weights], self.y_shape, value)


def stored_channel(pattern: Pattern, weights: list, out, taps: tuple, slot, channels: int):
    """The input channel that the stored value ``slot`` of output channel ``out`` multiplies."""
    form = pattern.form(channels)
    if form == "dense":
        return slot
    index = weights[1]
    if form == "shared":
        return index[(out // pattern.block, *taps, slot)].astype("int64")
    if form == "gather":
        return index[(out // PANEL, *taps, slot, out % PANEL)].astype("int64")
    slots, bits = pattern.slots(channels), pattern.bits
    covered = channels // pattern.window * pattern.window
    per_word = PANEL // pattern.words
    lane = out % PANEL
    # A slot behind the windows is a dense one; its index word does not exist, so read a real one.
    word = index[(out // PANEL, *taps, tirx.min(slot, tir.i64(slots - 1)), lane // per_word)].astype("int64")
    choice = (word >> (lane % per_word * bits)) & tir.i64(pattern.window - 1)
    inside = slot // pattern.window_slots * pattern.window + choice
    if covered == channels:
        return inside
    return tirx.Select(slot < slots, inside, slot - slots + covered)


def find_anchor(func: tirx.PrimFunc):
    """The contraction's spec and block in a fused function, or None."""
    for block in tir.blocks(func.body):
        if ANNOTATION in block.annotations:
            return from_text(str(block.annotations[ANNOTATION])), block
    return None


def to_text(spec) -> str:
    return json.dumps({"kind": type(spec).__name__, **dataclasses.asdict(spec)})


def from_text(text: str):
    fields = json.loads(text)
    kind = {"Gemm": Gemm}[fields.pop("kind")]
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    fields["pattern"] = Pattern(**fields["pattern"])
    return kind(**fields)


def _placeholder(shape: tuple[int, ...], dtype: str, name: str):
    return te.placeholder([tir.i64(d) for d in shape], dtype, name=name)


def _check_shape(who: str, weight: np.ndarray, shape: tuple[int, ...]):
    if tuple(weight.shape) != shape:
        raise ValueError(f"{who}: required a weight of shape {list(shape)}, found {list(weight.shape)}")


def _anchor(spec, inputs: list, shape: tuple[int, ...], value) -> tirx.PrimFunc:
    name = type(spec).__name__.lower()
    y = te.compute([tir.i64(d) for d in shape], value, name=name, attrs={ANNOTATION: to_text(spec)})
    func = te.create_prim_func([*inputs, y])
    return func.with_attrs({tir.NOALIAS: True, tir.OP_PATTERN: tir.OUT_ELEMWISE_FUSABLE})
