"""The value of shape arithmetic: constants, shapes and what exporters compute from them.

A full constant folder ran before (compiler/ingest); this serves graphs that did not pass through it and
values whose only unknown is a shape that the caller knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import attribute, const_array, dims, is_op

# Beyond these it is no shape arithmetic.
_MAX_ELEMENTS = 1 << 20
_MAX_DEPTH = 64


def fold(value: ir.Value | None, shapes: Mapping[ir.Value, Sequence[int]] | None = None) -> np.ndarray | None:
    """The array that ``value`` always is, given ``shapes`` of some values, or None when that is not known."""
    return _fold(value, shapes or {}, {}, 0)


def _fold(
    value: ir.Value | None,
    shapes: Mapping[ir.Value, Sequence[int]],
    done: dict[ir.Value, np.ndarray | None],
    depth: int,
) -> np.ndarray | None:
    if value is None or depth > _MAX_DEPTH:
        return None
    if value not in done:
        known = const_array(value)
        done[value] = _evaluate(value, shapes, done, depth) if known is None else known
    return done[value]


def _evaluate(value: ir.Value, shapes: Mapping, done: dict, depth: int) -> np.ndarray | None:
    node = value.producer()
    if not is_op(node, *_OPS):
        return None
    if node.op_type == "Shape":
        shape = shapes.get(node.inputs[0], dims(node.inputs[0]))
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        return np.array(shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))], np.int64)
    args = []
    for operand in node.inputs:
        args.append(None if operand is None else _fold(operand, shapes, done, depth + 1))
        if operand is not None and args[-1] is None:
            return None
    try:
        result = np.asarray(_OPS[node.op_type](node, *args))
    except (ValueError, IndexError, TypeError):  # a wrong graph is for the checker to report
        return None
    return result if result.size <= _MAX_ELEMENTS else None


def _cast(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return x.astype(ir.DataType(node.attributes["to"].as_int()).numpy())


def _axes(axes: np.ndarray | None) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(a) for a in axes.reshape(-1))


def _slice(node: ir.Node, x: np.ndarray, starts, ends, axes=None, steps=None) -> np.ndarray:
    index: list[slice] = [slice(None)] * x.ndim
    for i, axis in enumerate(_axes(axes) or range(starts.size)):
        step = 1 if steps is None else int(steps.reshape(-1)[i])
        if step != 1:
            raise ValueError("only steps of 1")
        index[axis] = slice(int(starts.reshape(-1)[i]), int(ends.reshape(-1)[i]))
    return x[tuple(index)]


def _range(node: ir.Node, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    if abs(limit.item() - start.item()) > _MAX_ELEMENTS * abs(delta.item()):
        raise ValueError("too long")
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _reshape(node: ir.Node, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    keeps_zero = attribute(node, "allowzero", 0)
    return x.reshape([x.shape[i] if d == 0 and not keeps_zero else int(d) for i, d in enumerate(shape)])


def _transpose(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return np.transpose(x, attribute(node, "perm"))


_OPS: dict[str, Callable] = {
    "Shape": None,
    "Identity": lambda node, x: x,
    "Cast": _cast,
    "CastLike": lambda node, x, like: x.astype(like.dtype),
    "Gather": lambda node, x, i: np.take(x, i, axis=attribute(node, "axis", 0)),
    "Slice": _slice,
    "Range": _range,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": lambda node, x, axes=None: np.squeeze(x, _axes(axes)),
    "Unsqueeze": lambda node, x, axes: np.expand_dims(x, _axes(axes)),
    "Concat": lambda node, *xs: np.concatenate(xs, axis=attribute(node, "axis")),
    "Expand": lambda node, x, shape: x * np.ones([int(d) for d in shape], x.dtype),
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
}
