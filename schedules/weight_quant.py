"""Products with quantised weights and float activations: what they compute, and how weights are packed.

    Y[r, o] = sum_g S[o, g] * sum_(c in g) X[r, c] * (Q[o, c] - Z[o, g])

with integers ``Q`` of 8 or 4 bits and groups ``g`` of neighbouring input channels.  Activations are rounded
to 16 bits, each group of each row on a scale of its own (``group_activations``): an error of 2^-16 of the
largest activation in the group, far below that of the weights.  So the inner sums are sums of integers, exact
and equal on every CPU, and take two to four products an instruction.

Output channels are cut into blocks of ``WIDTH`` lanes, or fewer where there are fewer channels; one block is
one stream of memory.  *Slots* are the stored weights of a channel: all, or those that a pattern keeps.

=====  ========  ==================================  ======================================================
array  dtype     shape                               content
=====  ========  ==================================  ======================================================
W      int32     ``[blocks, slots / per_word, lane]``  Q + 128 or Q + 8, so without a sign; see ``_shift``
S      uint16    ``[blocks, groups, lane]``          bfloat16, where every scale is one; else float32
Z      uint8     ``[blocks, groups, lane]``          as W, only where not all are 0; never with a pattern
I      int32     ``[n / block, slots / 4]``          of a pattern: channels less ``start``, as bytes
=====  ========  ==================================  ======================================================
"""

from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_spec import anchor, check_weight, placeholder, reduce_axis
from sparsec.schedules.elements import from_bfloat16, to_bfloat16, widened
from sparsec.schedules.group_activations import Groups
from sparsec.schedules.layout import DENSE, PANEL, Pattern, positions

#: Lanes of a block: four vectors of 512 bits, whose sums hide the latency of one instruction.
WIDTH = 64
#: Slots that a packed word holds.
PER_WORD = {8: 4, 4: 8}
#: What is added to signed weights.
OFFSET = {8: 128, 4: 8}


@dataclass(frozen=True)
class QuantGemm:
    """``Y[*lead, n]`` from ``X[*lead, k]`` and a weight ``[n, k]`` of ``bits``, quantised in groups.

    ``scale`` is the dtype of S; ``zeros``: there is a Z.  Parameters of the function, in order: the arrays of
    ``group_activations``, W, S, [Z or I], Y.
    """

    lead: tuple[int, ...]
    k: int
    n: int
    bits: int
    group: int
    pattern: Pattern = DENSE
    scale: str = "float32"
    zeros: bool = False

    def __post_init__(self):
        if reason := why_not(self.bits, self.group, self.pattern, self.zeros):
            raise ValueError(f"QuantGemm: {reason}")

    @property
    def groups(self) -> Groups:
        return Groups(self.lead, self.k, self.group, ordered=self.pattern.dense)

    @property
    def per_group(self) -> int:
        """Slots of one group."""
        return self.pattern.kept_inputs(self.group)

    @property
    def slots(self) -> int:
        return self.groups.count * self.per_group

    @property
    def width(self) -> int:
        """Lanes of a block."""
        return min(WIDTH, -(-self.n // PANEL) * PANEL)

    @property
    def blocks(self) -> int:
        return -(-self.n // self.width)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.k)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.n)

    def weight_args(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each packed array."""
        by_group = (self.blocks, self.groups.count, self.width)
        args = [((self.blocks, self.slots // PER_WORD[self.bits], self.width), "int32")]
        args.append((by_group, self.scale))
        if self.zeros:
            args.append((by_group, "uint8"))
        if not self.pattern.dense:
            args.append(((-(-self.n // self.pattern.block), self.slots // 4), "int32"))
        return args

    @property
    def read_order(self) -> list[str]:
        """The names of the definition's parameters but Y, in the order in which its value reads them."""
        index = [] if self.pattern.dense else ["I"]
        return ["X", *index, "W", *(["Z"] if self.zeros else []), "S", "XS"]

    # Packing ------------------------------------------------------------------------------------------

    def pack(self, values: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> tuple[np.ndarray, ...]:
        """Packs int8 ``values [n, k]``, float32 ``scale`` and int8 ``zero [n, groups]``.

        With a pattern, values other than 0 must keep to it.
        """
        count = self.groups.count
        check_weight("QuantGemm.pack", values, (self.n, self.k))
        for array in (scale, zero):
            check_weight("QuantGemm.pack", array, (self.n, count))
        padded = np.zeros((self.n, self.groups.depth), np.int8)
        padded[:, : self.k] = values
        index = []
        if not self.pattern.dense:
            position = positions(self.pattern, padded[:, None], padded[:, None] != 0)[:, 0]
            padded = np.take_along_axis(padded, position, 1)
            inside = (position - self._starts())[:: self.pattern.block].astype(np.uint8)
            index = [np.ascontiguousarray(inside).view(np.int32)]
        offset = OFFSET[self.bits]
        stored = scale if self.scale == "float32" else to_bfloat16(scale)
        arrays = [self._words((padded.astype(np.int16) + offset).astype(np.uint32)), self._blocked(stored)]
        zeros = [self._blocked((zero.astype(np.int16) + offset).astype(np.uint8))] if self.zeros else []
        return (*arrays, *zeros, *index)

    def unpack(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """The float32 weight ``[n, k]`` that packed arrays stand for."""
        words, scale, *rest = arrays
        scale = self._lanes(scale if self.scale == "float32" else from_bfloat16(scale))
        offset = np.full_like(scale, OFFSET[self.bits], np.int32)
        zero = self._lanes(rest[0]).astype(np.int32) if self.zeros else offset
        parts = words[:, :, None] >> self._shift(np.arange(PER_WORD[self.bits]))[:, None]
        values = self._lanes((parts & (1 << self.bits) - 1).reshape(self.blocks, -1, self.width))
        spread = lambda array: np.repeat(array, self.per_group, axis=1)  # noqa: E731
        weight = (values - spread(zero)).astype(np.float32) * spread(scale)
        if self.pattern.dense:
            return weight[:, : self.k]
        dense = np.zeros((self.n, self.groups.depth), np.float32)
        position = np.ascontiguousarray(rest[0]).view(np.uint8) + self._starts()
        position = np.repeat(position, self.pattern.block, 0)[: self.n]
        np.put_along_axis(dense, position, weight, 1)
        return dense[:, : self.k]

    def _words(self, values: np.ndarray) -> np.ndarray:
        """uint32 ``[n, slots]`` to W."""
        per = PER_WORD[self.bits]
        parts = self._blocked(values).reshape(self.blocks, -1, per, self.width)
        at = self._shift(np.arange(per)).astype(np.uint32)[:, None]
        return np.bitwise_or.reduce(parts << at, axis=2).view(np.int32)

    def _blocked(self, array: np.ndarray) -> np.ndarray:
        """``[n, m]`` to ``[blocks, m, width]``, padded with zeros."""
        padded = np.zeros((self.blocks * self.width, array.shape[1]), array.dtype)
        padded[: self.n] = array
        return np.ascontiguousarray(padded.reshape(self.blocks, self.width, -1).transpose(0, 2, 1))

    def _lanes(self, array: np.ndarray) -> np.ndarray:
        """``_blocked``, undone."""
        return array.transpose(0, 2, 1).reshape(self.blocks * self.width, -1)[: self.n]

    # Meaning ------------------------------------------------------------------------------------------

    def _shift(self, slot: np.ndarray) -> np.ndarray:
        """The lowest bit of each of the slots of a word."""
        return (8 * (slot % 4) + 4 * (slot // 4)).astype(np.int32)

    def start(self, slot):
        """The first of the 16 input channels among which those of ``slot`` and its three neighbours are."""
        return first_channel(self.pattern, slot)

    def _starts(self) -> np.ndarray:
        return self.start(np.arange(self.slots))

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled function; it sums in float32, kernels in integers group by group."""
        (x, scales), names = self.groups.args(), ["W", "S"]
        x, scales = placeholder(*x, "X"), placeholder(*scales, "XS")
        names += [*(["Z"] if self.zeros else []), *([] if self.pattern.dense else ["I"])]
        weights = [placeholder(s, d, n) for (s, d), n in zip(self.weight_args(), names, strict=True)]
        group, slot = reduce_axis(self.groups.count, "g"), reduce_axis(self.per_group, "k")
        per = PER_WORD[self.bits]

        def value(*i):
            block, lane, g = i[-1] // self.width, i[-1] % self.width, group.var
            at = g * self.per_group + slot.var
            if self.pattern.dense:
                place = at // 4 * 4 + tirx.Select(
                    at % 4 == 1, tir.i64(2), tirx.Select(at % 4 == 2, tir.i64(1), at % 4)
                )
            else:
                inside = weights[-1][(i[-1] // self.pattern.block, at // 4)] >> (at % 4 * 8).astype("int32")
                place = self.start(at) + (inside & tir.i32(15)).astype("int64")
            shift = (8 * (at % 4) + 4 * (at % per // 4)).astype("int32")
            q = weights[0][(block, at // per, lane)] >> shift & tir.i32((1 << self.bits) - 1)
            zero = tir.i32(OFFSET[self.bits])
            if self.zeros:
                zero = weights[2][(block, g, lane)].astype("int32")
            product = x[(*i[:-1], tir.i64(0), place)].astype("int32") * (q - zero)
            scale = weights[1][(block, g, lane)]
            scale = scale if self.scale == "float32" else widened(scale)
            return te.sum(
                product.astype("float32") * (scale * scales[(*i[:-1], tir.i64(0), g)]), axis=[group, slot]
            )

        return anchor(self, [x, scales, *weights], self.y_shape, value)


def first_channel(pattern: Pattern, slot):
    """See ``QuantGemm.start``; ``slot`` is a number, an array or an expression."""
    return slot // 4 * 4 // pattern.n * pattern.m


def why_not(bits: int, group: int, pattern: Pattern, zeros: bool) -> str | None:
    """Why no kernel takes such a weight, or None."""
    if bits not in PER_WORD:
        return f"8 or 4 bits are required, found {bits}"
    if group % 16 or not 0 < group <= 256:
        return f"groups of a multiple of 16 channels, at most 256, are required, found {group}"
    if pattern.dense:
        return None
    if zeros:
        return "a pattern takes no zero points"
    if pattern.scattered or pattern.block % PANEL:
        return f"patterns shared by a multiple of {PANEL} channels are required"
    if group % pattern.m or pattern.kept_inputs(group) % PER_WORD[bits]:
        return f"{group} channels are no whole groups of {pattern.m}, or their kept weights no whole words"
    slots = np.arange(pattern.kept_inputs(group))
    last = slots // pattern.n * pattern.m + pattern.m - 1
    if pattern.m % 2 or (last - first_channel(pattern, slots) > 15).any():
        return "four kept weights must lie among 16 channels, from an even one on"
    return None


def scale_dtype(scale: np.ndarray) -> str:
    """The dtype that S can have without loss."""
    return "uint16" if np.array_equal(from_bfloat16(to_bfloat16(scale)), scale) else "float32"
