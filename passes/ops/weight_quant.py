"""A product with a weight of small integers, in groups of input channels with a scale each."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.ops.base import Attribute, OpDef, function

NAME = "WeightQuantMatMul"
_INT = ir.AttributeType.INT
_ATTRIBUTES = {
    "bits": Attribute(_INT, "8 or 4: how many bits the values of Q need", required=True),
    "n": Attribute(_INT, "kept positions in each group of the pattern", 1),
    "m": Attribute(_INT, "length of a group of the pattern", 1),
    "block": Attribute(_INT, "consecutive output channels that share kept positions", 1),
}


def weight_quant_matmul(
    a: np.ndarray, q: np.ndarray, s: np.ndarray, z: np.ndarray, i: np.ndarray, **_: int
) -> np.ndarray:
    """`a @ b'` in a's dtype, summed in float64, with b as `dequantised` has it."""
    return (a.astype(np.float64) @ dequantised(q, s, z, i).T.astype(np.float64)).astype(a.dtype)


def dequantised(q: np.ndarray, s: np.ndarray, z: np.ndarray, i: np.ndarray) -> np.ndarray:
    """The float32 weight `[N, K]` that the constants of a node stand for."""
    return (q.astype(np.float32) - z[:, i].astype(np.float32)) * s[:, i]


def _infer(node: ir.Node) -> tuple[ir.DataType | None, ir.Shape | None]:
    a, q = node.inputs[0], node.inputs[1]
    if a.shape is None or q.shape is None or len(a.shape) < 2:
        return a.dtype, None
    return a.dtype, ir.Shape([*a.shape[:-1], q.shape[0]])


def _body(opset: int) -> ir.Function:
    def build(tape: ir.tape.Tape, a, q, s, z, i) -> ir.Value:
        of_channel = [tape.op("Gather", [value, i], {"axis": 1}) for value in (s, z)]
        scale, zero = of_channel[0], tape.op("Cast", [of_channel[1]], {"to": int(ir.DataType.FLOAT)})
        values = tape.op("Sub", [tape.op("Cast", [q], {"to": int(ir.DataType.FLOAT)}), zero])
        weight = tape.op("Transpose", [tape.op("Mul", [values, scale])], {"perm": [1, 0]})
        return tape.op("MatMul", [a, weight])

    return function(NAME, ["A", "Q", "S", "Z", "I"], opset, build, _ATTRIBUTES)


OPS = (
    OpDef(
        name=NAME,
        inputs=(
            ("A", "[..., M, K], float"),
            ("Q", "[N, K], constant, int8; of 4 bits: -8 to 7"),
            ("S", "[N, groups], constant, float"),
            ("Z", "[N, groups], constant, int8"),
            ("I", "[K], constant, int64: the group of each input channel"),
        ),
        formula="A @ transpose((Q - Z[:, I]) * S[:, I])",
        source="ONNX, DequantizeLinear with block_size; ONNX Runtime, com.microsoft.MatMulNBits",
        special=(
            "As MatMul. Kernels round A to 16 bits, each group of each row on its own scale: an error of"
            " 2^-16 of the largest magnitude there."
        ),
        body=_body,
        reference=weight_quant_matmul,
        infer=_infer,
        attributes=_ATTRIBUTES,
    ),
)
