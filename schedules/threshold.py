"""Thresholding operators as elementwise expressions, so that each fuses into what made its input.

The meanings are those of ``docs/operators.md``: ``tau`` and ``m`` broadcast to ``x`` from the right;
soft, shifted and clipped forms let NaN through, hard and jump forms turn it into 0.
"""

from collections.abc import Callable

from tvm import te, tirx


def soft(x, tau):
    """``sign(x) * max(|x| - tau, 0)``, written ``x - min(max(x, -tau), tau)``."""
    return x - tirx.Select(x > tau, tau, tirx.Select(x < -tau, -tau, x))


def hard(x, tau):
    """``x`` where ``|x| > tau``, else 0."""
    return tirx.Select(tirx.any(x > tau, x < -tau), x, _zero(x))


def shifted_relu(x, tau):
    """``max(x - tau, 0)``."""
    return tirx.Select(x < tau, _zero(x), x - tau)


def jump_relu(x, tau):
    """``x`` where ``x > tau``, else 0."""
    return tirx.Select(x > tau, x, _zero(x))


def clipped_soft(x, tau, m):
    """``sign(x) * min(max(|x| - tau, 0), m)``."""
    y = soft(x, tau)
    return tirx.Select(y > m, m, tirx.Select(y < -m, -m, y))


def clipped_shifted_relu(x, tau, m):
    """``min(max(x - tau, 0), m)``."""
    y = shifted_relu(x, tau)
    return tirx.Select(y > m, m, y)


OPERATORS: dict[str, Callable] = {
    "SoftThreshold": soft,
    "HardThreshold": hard,
    "ShiftedRelu": shifted_relu,
    "JumpRelu": jump_relu,
    "ClippedSoftThreshold": clipped_soft,
    "ClippedShiftedRelu": clipped_shifted_relu,
}


def threshold(op: str, x: te.Tensor, *bounds: te.Tensor) -> te.Tensor:
    """The TE definition of operator ``op``: ``bounds`` are ``tau`` and, for clipped forms, ``m``."""

    def value(*i):
        return OPERATORS[op](x(*i), *(_at(bound, i) for bound in bounds))

    return te.compute(x.shape, value, name="threshold")


def _at(bound: te.Tensor, index: tuple):
    """``bound`` at ``index`` under broadcasting from the right."""
    own = index[len(index) - len(bound.shape) :]
    return bound(*(0 if int(d) == 1 else i for d, i in zip(bound.shape, own, strict=True)))


def _zero(x):
    return tirx.const(0.0, str(x.ty.dtype))
