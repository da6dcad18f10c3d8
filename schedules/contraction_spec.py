"""What the specs of all contractions share: the anchor's annotation, its text, the N:M index arithmetic."""

import dataclasses
import json
from dataclasses import dataclass, field

import numpy as np
import tvm_ffi
from tvm import te, tirx

from sparsec.schedules import tir
from sparsec.schedules.elements import FLOAT32, Element
from sparsec.schedules.layout import BITS, PANEL, PER_WORD, WINDOW, Pattern
from sparsec.schedules.layout_strips import Strips

ANNOTATION = "sparsec.contraction"


@dataclass(frozen=True)
class Image:
    """A window that slides over ``X [batch, in_h, in_w, in_c]``; pads are top, left, bottom, right.

    ``zero`` is what cells in the padding hold, in the type of X.
    """

    batch: int
    in_h: int
    in_w: int
    in_c: int
    out_c: int
    k_h: int
    k_w: int
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    zero: int = field(default=0, kw_only=True)

    @property
    def out_h(self) -> int:
        span = (self.k_h - 1) * self.dilations[0] + 1
        return (self.in_h + self.pads[0] + self.pads[2] - span) // self.strides[0] + 1

    @property
    def out_w(self) -> int:
        span = (self.k_w - 1) * self.dilations[1] + 1
        return (self.in_w + self.pads[1] + self.pads[3] - span) // self.strides[1] + 1

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.batch, self.in_h, self.in_w, self.in_c

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.batch, self.out_h, self.out_w, self.out_c


def to_text(spec) -> str:
    """The spec as JSON.  Of defaults of later days nothing is said: texts are keys, and were so before."""
    fields = {"kind": type(spec).__name__, **dataclasses.asdict(spec)}
    for name, default in (("precision", FLOAT32.name), ("zero", 0), ("panels_only", False)):
        if fields.get(name) == default:
            del fields[name]
    return json.dumps(fields)


def kind_of(spec) -> Element:
    """The element of any contraction; those without a choice are float32."""
    return getattr(spec, "kind", FLOAT32)


def placeholder(shape: tuple[int, ...], dtype: str, name: str):
    return te.placeholder([tir.i64(d) for d in shape], dtype, name=name)


def reduce_axis(extent: int, name: str):
    return te.reduce_axis((tir.i64(0), tir.i64(extent)), name=name)


def check_weight(who: str, weight: np.ndarray, shape: tuple[int, ...]):
    if tuple(weight.shape) != shape:
        raise ValueError(f"{who}: required a weight of shape {list(shape)}, found {list(weight.shape)}")


def anchor(spec, inputs: list, shape: tuple[int, ...], value) -> tirx.PrimFunc:
    """The function of one block that computes ``value(*coords)``: annotated, open for fusion."""
    name = type(spec).__name__.lower()
    y = te.compute([tir.i64(d) for d in shape], value, name=name, attrs={ANNOTATION: to_text(spec)})
    func = te.create_prim_func([*inputs, y])
    return func.with_attrs({tir.NOALIAS: True, tir.OP_PATTERN: tir.OUT_ELEMWISE_FUSABLE})


def annotated(func: tirx.PrimFunc) -> tuple[str, tir.Block] | None:
    """The text and the block of the one contraction in a function before or after fusion, or None."""
    found: list[tir.Block] = []

    def visit(block):
        if ANNOTATION in block.annotations:
            found.append(block)

    tvm_ffi.structural_walk(func.body, (tir.Block, visit))
    return (str(found[0].annotations[ANNOTATION]), found[0]) if len(found) == 1 else None


def stored_channel(
    pattern: Pattern, weights: list, panel, lane, taps: tuple, slot, channels: int, group: int = 1
):
    """The input channel that a stored value, ``slot`` of a panel's lane, multiplies in a definition.

    ``group`` values share a word.
    """
    form = pattern.form(channels)
    if form == "dense":
        return slot
    index = weights[1]
    if form == "shared":
        return index[(panel // (pattern.block // PANEL), *taps, slot)].astype("int64")
    if form == "gather":
        return index[(panel, *taps, slot, lane)].astype("int64")
    slots = pattern.slots(channels)
    covered = channels // WINDOW * WINDOW
    # A slot behind the windows is a dense one; its index word does not exist, so read a real one.
    word, part = tirx.min(slot, tir.i64(slots - 1)) // group, slot % group
    at = lane * group + part
    choices = index[(panel, *taps, word, at // PER_WORD)].astype("int64")
    choice = (choices >> (at % PER_WORD * BITS)) & tir.i64(WINDOW - 1)
    inside = slot // pattern.window_slots * WINDOW + choice
    if covered == channels:
        return inside
    return tirx.Select(slot < slots, inside, slot - slots + covered)


class Words:
    """The reduction over the words that a pattern stores of ``channels`` inputs, as definitions write it."""

    def __init__(self, element: Element, pattern: Pattern, channels: int):
        self.element, self.pattern, self.channels = element, pattern, channels
        self.word = reduce_axis(element.words(pattern.kept(channels)), "k")
        self.axes = [self.word]
        if element.group > 1:
            self.axes.append(reduce_axis(element.group, "part"))

    def channel(self, weights: list, panel, lane, taps: tuple):
        """The input channel that the current value multiplies."""
        if self.element.group == 1:
            return stored_channel(self.pattern, weights, panel, lane, taps, self.word.var, self.channels)
        slot = self.word.var * self.element.group + self.axes[1].var
        if windows := self.element.windows(self.pattern, self.channels):
            return windows.channel(weights[1], (panel // (self.pattern.block // PANEL), *taps), slot)
        group = self.element.group
        channel = stored_channel(self.pattern, weights, panel, lane, taps, slot, self.channels, group)
        stored = self.pattern.form(self.channels) == "shared"  # the positions are those of whole words
        return channel if stored else tirx.min(channel, tir.i64(self.channels - 1))

    def product(self, x, values, panel, lane, taps: tuple):
        """``x``, as stored, times the current value of the packed ``values``."""
        part = self.axes[1].var if self.element.group > 1 else None
        weight = self.element.weight_value(values[(panel, *taps, self.word.var, lane)], part)
        return self.element.activation_value(x) * weight


def strips_sum(strips: Strips, weights: list, channel, activation):
    """Output ``channel`` of the packed arrays ``weights``: the sum over its slots of all blocks.

    ``activation(tap, input)`` is what a stored weight multiplies.
    """
    values, position, start = weights
    longest = -(-strips.most_inputs // strips.unroll) * strips.unroll
    block, step = reduce_axis(strips.blocks, "block"), reduce_axis(longest, "step")
    run = block.var * strips.count + channel // strips.width
    slot = start[run].astype("int64") + step.var
    first_tap, first_channel = strips.first(block.var)
    inside = position[slot].astype("int64") + first_channel
    tap, source = (first_tap + inside // strips.channels, inside % strips.channels)
    product = activation(tap, source) * values[slot, channel % strips.width]
    within = slot < start[run + 1].astype("int64")
    return te.sum(tirx.if_then_else(within, product, tir.f32(0.0)), axis=[block, step])
