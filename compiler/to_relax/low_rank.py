"""A sparse product with a low-rank term: `x W + (x R) L` as one product of a longer row.

    u = x R,   y = [x u] [W; L]

The rows of L are laid among zero rows, n in each group of m, so that `[W; L]` keeps to the pattern of W: the
kernel of the sparse product takes them along, and the result is written once. Copying x costs as much as one
column in N more, so it is worth it from `WIDE` on; narrower products are added as they are.
"""

import math

import numpy as np
import onnx_ir as ir
from tvm import relax

from sparsec.compiler.to_relax.linear import apply, gemm_layer, pattern_of, record
from sparsec.schedules.attention import Strided
from sparsec.schedules.concat import concat
from sparsec.schedules.contraction import Gemm
from sparsec.schedules.layout import DENSE

WIDE = 2
"""Outputs for each input from which one product is taken (128x768x3072 of rank 16: 0.96 of the time of three;
128x384x1536: 1.01; 16x768x768 would be 1.04)."""


def products(node: ir.Node) -> list[tuple]:
    """``[(spec, weight)]`` of the sparse product, longer by the low-rank term where it takes that along."""
    weight, _, left = (value.const_value.numpy() for value in node.inputs[1:])
    if joined(node):
        weight = np.concatenate([weight, spread(left, *_pattern(node))])
    return [gemm_layer(node, weight.T)]


def joined(node: ir.Node) -> bool:
    k, n = node.inputs[1].shape
    return n >= WIDE * k and k % pattern_of(node).m == 0


def spread(rows: np.ndarray, n: int, m: int) -> np.ndarray:
    """`[r, N]` -> `[ceil(r / n) * m, N]`: n rows at the head of each group, the others zero."""
    rank = np.arange(len(rows))
    out = np.zeros((-(-len(rows) // n) * m, rows.shape[1]), rows.dtype)
    out[rank // n * m + rank % n] = rows
    return out


def matmul(importer, node: ir.Node, inputs):
    spec, weight = products(node)[0]
    right, left = (value.const_value.numpy() for value in node.inputs[2:])
    x = inputs[0]
    if joined(node):
        longer = _beside(importer, x, _dense(importer, node, x, spread(right.T, *_pattern(node)).T), spec)
        y, size, precision = apply(importer, node, longer, spec, weight)
    else:
        y, size, precision = apply(importer, node, x, spec, weight)
        y = relax.op.add(y, _dense(importer, node, _dense(importer, node, x, right), left))
    record(importer, node, weight, size, precision)
    return y


def _pattern(node: ir.Node) -> tuple[int, int]:
    pattern = pattern_of(node)
    return pattern.n, pattern.m


def _dense(importer, node: ir.Node, x, weight: np.ndarray):
    """`x @ weight`, `[k, n]`."""
    spec = Gemm(tuple(int(d) for d in node.outputs[0].shape)[:-1], *weight.shape, DENSE)
    packed = [importer.weight(array, node) for array in spec.pack(np.ascontiguousarray(weight.T))]
    return importer.kernel("gemm", spec.prim_func(), [x, *packed], list(spec.y_shape))


def _beside(importer, x, term, spec: Gemm):
    """The rows of `x` and of `term`, one behind the other: `[*lead, spec.k]`."""
    rows = math.prod(spec.lead)
    widths = [int(value.ty.shape[-1]) for value in (x, term)]
    sources = [Strided(rows * width, 0, (width, 1), "float32") for width in widths]
    flat = [
        importer.bb.emit(relax.op.reshape(value, [rows * width]))
        for value, width in zip((x, term), widths, strict=True)
    ]
    func = concat(sources, [(rows, width) for width in widths], 1)
    both = importer.kernel("concat", func, flat, [rows * sum(widths)])
    return importer.bb.emit(relax.op.reshape(both, list(spec.x_shape)))
