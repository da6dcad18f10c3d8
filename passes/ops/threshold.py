"""Thresholding activations: zero where the input is small, at a threshold per tensor or per channel.

``tau`` and ``m`` are tensors of X's type that broadcast into X, finite and not negative; the passes that
make these nodes hold both to be constants.  Formulas of the shifted and soft forms and of their clipping:
"Deep Neural Network Initialization with Sparsity Inducing Activations" (phi_tau, CReLU, CST).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.ops.base import OpDef, function, same_as_first

_PAPER = '"Deep Neural Network Initialization with Sparsity Inducing Activations"'
_X = ("X", "any shape, float")
_TAU = ("tau", "threshold >= 0, broadcasts into X")
_M = ("m", "largest magnitude of the output >= 0, broadcasts into X")
_NAN = "NaN gives NaN. +inf gives {inf}. A zero output may carry either sign."
_NAN_ZERO = "NaN gives 0, because no comparison with NaN holds. +inf gives +inf."


# ---- meaning ------------------------------------------------------------------------------------------


def soft_threshold(x: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """``sign(x) * max(|x| - tau, 0)``, the proximal operator of ``tau*|x|``; keeps x's dtype and shape.

    Written ``x - clamp(x, -tau, tau)``: the same single rounding of x-tau or x+tau, and NaN passes.
    """
    with np.errstate(invalid="ignore"):
        return x - np.minimum(np.maximum(x, -tau), tau)


def hard_threshold(x: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """``x if |x| > tau else 0``; keeps x's dtype and shape."""
    return np.where(np.abs(x) > tau, x, np.zeros((), x.dtype))


def shifted_relu(x: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """``max(0, x - tau)``; keeps x's dtype and shape."""
    return np.maximum(x - tau, np.zeros((), x.dtype))


def jump_relu(x: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """``x if x > tau else 0``, ONNX's ThresholdedRelu with a tensor as alpha; keeps x's dtype and shape."""
    return np.where(x > tau, x, np.zeros((), x.dtype))


def clipped_soft_threshold(x: np.ndarray, tau: np.ndarray, m: np.ndarray) -> np.ndarray:
    """``sign(x) * min(max(|x| - tau, 0), m)`` (CST); keeps x's dtype and shape."""
    return np.minimum(np.maximum(soft_threshold(x, tau), -m), m)


def clipped_shifted_relu(x: np.ndarray, tau: np.ndarray, m: np.ndarray) -> np.ndarray:
    """``min(max(0, x - tau), m)`` (CReLU); keeps x's dtype and shape."""
    return np.minimum(shifted_relu(x, tau), m)


# ---- the same as ONNX function bodies -------------------------------------------------------------------


def _soft(t: ir.tape.Tape, x: ir.Value, tau: ir.Value) -> ir.Value:
    inside = t.op("Min", [t.op("Max", [x, t.op("Neg", [tau])]), tau])
    return t.op("Sub", [x, inside])


def _select(t: ir.tape.Tape, condition: ir.Value, x: ir.Value) -> ir.Value:
    zero = t.op("CastLike", [t.op("Constant", [], {"value_float": 0.0}), x])
    return t.op("Where", [condition, x, zero])


def _hard(t: ir.tape.Tape, x: ir.Value, tau: ir.Value) -> ir.Value:
    return _select(t, t.op("Greater", [t.op("Abs", [x]), tau]), x)


def _shifted(t: ir.tape.Tape, x: ir.Value, tau: ir.Value) -> ir.Value:
    return t.op("Relu", [t.op("Sub", [x, tau])])


def _jump(t: ir.tape.Tape, x: ir.Value, tau: ir.Value) -> ir.Value:
    return _select(t, t.op("Greater", [x, tau]), x)


def _clipped_soft(t: ir.tape.Tape, x: ir.Value, tau: ir.Value, m: ir.Value) -> ir.Value:
    return t.op("Min", [t.op("Max", [_soft(t, x, tau), t.op("Neg", [m])]), m])


def _clipped_shifted(t: ir.tape.Tape, x: ir.Value, tau: ir.Value, m: ir.Value) -> ir.Value:
    return t.op("Min", [_shifted(t, x, tau), m])


def _op(name: str, inputs: tuple, formula: str, source: str, special: str, build, reference) -> OpDef:
    names = [n for n, _ in inputs]

    def body(opset: int) -> ir.Function:
        return function(name, names, opset, build)

    return OpDef(name, inputs, formula, source, special, body, reference, same_as_first)


OPS = (
    _op(
        "SoftThreshold",
        (_X, _TAU),
        "sign(x) * max(|x| - tau, 0)",
        _PAPER,
        _NAN.format(inf="+inf"),
        _soft,
        soft_threshold,
    ),
    _op(
        "HardThreshold",
        (_X, _TAU),
        "x if |x| > tau else 0",
        "ONNX Shrink with bias 0",
        _NAN_ZERO,
        _hard,
        hard_threshold,
    ),
    _op(
        "ShiftedRelu", (_X, _TAU), "max(0, x - tau)", _PAPER, _NAN.format(inf="+inf"), _shifted, shifted_relu
    ),
    _op("JumpRelu", (_X, _TAU), "x if x > tau else 0", "ONNX ThresholdedRelu", _NAN_ZERO, _jump, jump_relu),
    _op(
        "ClippedSoftThreshold",
        (_X, _TAU, _M),
        "sign(x) * min(max(|x| - tau, 0), m)",
        f"{_PAPER}, CST",
        _NAN.format(inf="m"),
        _clipped_soft,
        clipped_soft_threshold,
    ),
    _op(
        "ClippedShiftedRelu",
        (_X, _TAU, _M),
        "min(max(0, x - tau), m)",
        f"{_PAPER}, CReLU",
        _NAN.format(inf="m"),
        _clipped_shifted,
        clipped_shifted_relu,
    ),
)
