"""A product with an N:M weight and a low-rank term, as SLoPe trains them: `A @ B + (A @ R) @ L`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.ops.base import OpDef, function
from sparsec.passes.ops.nm import PATTERN, infer_matmul


def nm_matmul_low_rank(a: np.ndarray, b: np.ndarray, r: np.ndarray, l: np.ndarray, **_: int) -> np.ndarray:
    """`a @ b + (a @ r) @ l` in a's dtype, summed in float64."""
    a64 = a.astype(np.float64)
    return (a64 @ b.astype(np.float64) + a64 @ r.astype(np.float64) @ l.astype(np.float64)).astype(a.dtype)


def _body(opset: int) -> ir.Function:
    def build(tape: ir.tape.Tape, a: ir.Value, b: ir.Value, right: ir.Value, left: ir.Value) -> ir.Value:
        low = tape.op("MatMul", [tape.op("MatMul", [a, right]), left])
        return tape.op("Add", [tape.op("MatMul", [a, b]), low])

    return function("NMMatMulLowRank", ["A", "B", "R", "L"], opset, build, PATTERN)


OPS = (
    OpDef(
        name="NMMatMulLowRank",
        inputs=(
            ("A", "[..., M, K], float"),
            ("B", "[K, N], constant, n:m along K"),
            ("R", "[K, r], constant"),
            ("L", "[r, N], constant"),
        ),
        formula="A @ B + (A @ R) @ L",
        source='Mozaffari et al., "SLoPe: double-pruned sparse plus lazy low-rank adapter pretraining", 2024',
        special="As MatMul; a kernel that skips zero weights has 0 for 0 * inf and 0 * NaN.",
        body=_body,
        reference=nm_matmul_low_rank,
        infer=infer_matmul,
        attributes=PATTERN,
    ),
)
