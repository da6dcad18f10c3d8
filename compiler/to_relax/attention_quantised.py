"""QuantizeLinear and DequantizeLinear in an attention: roundings of scores and P, bytes of Q, K and V.

A *pair* is a QuantizeLinear and the DequantizeLinear of what it makes.  Scales and zero points become numbers
that the kernel reads, so that the layers of a network share one.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from sparsec.compiler.to_relax.views import View
from sparsec.passes.quantised import Quantised, dequantised, quantiser, sole_reader
from sparsec.schedules import quantise
from sparsec.schedules.attention import HEAD


@dataclass(frozen=True)
class Pair:
    """``source`` goes into ``made`` and comes out again as reals in units of ``scale``."""

    source: ir.Value
    made: Quantised
    scale: np.float32

    @property
    def grid(self) -> np.ndarray:
        return quantise.grid(self.made.scale, self.made.zero, str(self.made.value.dtype.numpy()))


def pair(value: ir.Value) -> Pair | None:
    """The pair that makes ``value``, if nothing else reads the integers and their scale is a plain one."""
    given = dequantised(value)
    made = None if given is None else quantiser(given.value.producer())
    if made is None or made.zero != given.zero or sole_reader(made.value) is not value.producer():
        return None
    source = made.value.producer().inputs[0]
    if source.dtype != ir.DataType.FLOAT or sole_reader(source) is None or not quantise.plain(made.scale):
        return None
    return Pair(source, made, given.scale)


class Numbers:
    """Collects the numbers of one attention."""

    def __init__(self):
        self._values: list[np.float32] = []
        self._integers = False

    def __len__(self) -> int:
        return len(self._values)

    @property
    def array(self) -> np.ndarray:
        return np.array(self._values, np.float32)

    def integers(self, parts: list[View], guard) -> tuple[list[View], np.float32, object] | None:
        """``(Q, K, V, the factor of Q K^T, guard)`` where Q, K, V and P are all uint8 with one scale.

        The guard is what rounds P to integers, which are not scaled again.
        """
        stored = [dequantised(part.source) for part in parts]
        if any(s is None or s.value.dtype != ir.DataType.UINT8 for s in stored):
            return None
        if guard[0] != "Pair" or guard[2].made.value.dtype != ir.DataType.UINT8:
            return None
        q, k, v = stored
        share = guard[2]
        zeros = (q.zero, k.zero, share.made.zero, v.zero)
        self._values += [*map(np.float32, zeros), share.scale * v.scale]
        assert len(self) == HEAD
        self._integers = True
        factor = q.scale * k.scale
        for part in parts[:2]:
            factor = factor if part.factor == 1 else factor * np.float32(part.factor)
        views = [replace(part, source=s.value) for part, s in zip(parts, stored, strict=True)]
        return views, factor, ("Integers", *guard[1:])

    def expanded(self, tree, factor: float = 1):
        """``tree`` with its pairs as operators of ``SCORE_OPS``, and the product times ``factor``."""
        if tree == "S":
            return "S" if factor == 1 else ("Mul", "S", self._factor(factor))
        if not isinstance(tree, tuple) or tree[0] in ("operand", "number"):
            return tree
        op, *args = tree
        if op == "Integers":
            return self._steps(args[0], args[1])
        if op == "Pair":
            return ("Mul", self._steps(args[0], args[1], factor), self._number(args[1].scale))
        scaled = op in ("Mul", "Div") and isinstance(args[0], tuple) and isinstance(args[1], float)
        if scaled and args[0][0] == "Pair":  # one factor instead of two
            _, inner, rounded = args[0]
            by = np.float32(args[1])
            scale = rounded.scale * by if op == "Mul" else rounded.scale / by
            return ("Mul", self._steps(inner, rounded, factor), self._number(scale))
        return (op, *(self.expanded(arg, factor) for arg in args))

    def _steps(self, inner, rounded: Pair, factor: float = 1):
        """The integers of a pair, less their zero point."""
        scale, inverse, least, largest, *_ = rounded.grid
        if inner == "S" and self._integers:
            # Sums of integers become steps by one factor, as ONNX Runtime's QLinearMatMul has it, and P by
            # the reciprocal: it is a quotient already, rounded.
            limits = (self._number(bound) for bound in (least / scale, largest / scale))
            steps = ("Mul", "S", self._number(np.float32(factor) / rounded.made.scale))
            return ("Nearest", ("Within", steps, *limits))
        limits = (self._number(bound) for bound in (least, largest))
        within = ("Within", self.expanded(inner, factor), *limits)
        return ("Nearest", ("Quotient", within, self._number(scale), self._number(inverse)))

    def _factor(self, factor):
        """A factor of the product: known where the kernel is made, unless it is one of scales."""
        return self._number(factor) if self._integers else float(factor)

    def _number(self, value) -> tuple[str, int]:
        self._values.append(np.float32(value))
        return "number", len(self._values) - 1
