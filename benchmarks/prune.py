"""Zeros by magnitude in the weights of an ONNX file, as plain ONNX that every engine reads.

Only constants change: for N:M, in each group of m inputs, the n positions with the largest sum of |w| over a
block of output channels stay; for a share of zeros anywhere, the largest |w| of each layer.  Layers with
fewer than 1024 weights or too few inputs, and grouped convolutions, stay dense, as does the tail of a row
shorter than m.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

MIN_SIZE = 1024
#: Below this many input channels (a stem on an RGB image) a layer stays dense in every variant.
MIN_INPUTS = 4


@dataclass(frozen=True)
class Variant:
    """N:M shared by ``block`` output channels, or a ``share`` of zeros anywhere; neither is dense."""

    n: int = 1
    m: int = 1
    block: int = 1
    share: float = 0.0

    @property
    def kept(self) -> float:
        return (1 - self.share) * self.n / self.m

    def mask(self, weight: np.ndarray) -> np.ndarray:
        """True where ``weight [out, taps, in]`` stays."""
        size = np.abs(weight)
        if self.share:
            return size > np.quantile(size, self.share)
        out, taps, inputs = size.shape
        groups, blocks = inputs // self.m, -(-out // self.block)
        padded = np.zeros((blocks * self.block, taps, groups * self.m), size.dtype)
        padded[:out] = size[:, :, : groups * self.m]
        score = padded.reshape(blocks, self.block, taps, groups, self.m).sum(1)
        rank = (-score).argsort(-1, kind="stable").argsort(-1, kind="stable")
        kept = np.repeat((rank < self.n).reshape(blocks, taps, -1), self.block, 0)[:out]
        return np.concatenate([kept, np.ones((out, taps, inputs % self.m), bool)], -1)


VARIANTS = {
    "dense": Variant(),
    "2:4x1": Variant(2, 4, 1),
    "2:4x4": Variant(2, 4, 4),
    "2:4x32": Variant(2, 4, 32),
    "1:4x32": Variant(1, 4, 32),
    "90%": Variant(share=0.9),
}


def prune(model: onnx.ModelProto, variant: Variant) -> int:
    """Prune the MatMul, Gemm and Conv weights of ``model`` in place; returns how many layers changed.

    Each layer gets a constant of its own, so that an embedding tied to the output head stays dense.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    transposed = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in constants
    }
    changed = 0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        name = node.input[1]
        source = constants.get(transposed.get(name, name))
        if source is None:
            continue
        array = numpy_helper.to_array(source)
        array = array.T if name in transposed else array
        view = _rows(node, array)
        if view is None or view.size < MIN_SIZE or view.shape[-1] < max(variant.m, MIN_INPUTS):
            continue
        array = np.where(_stored(node, variant.mask(view), array), array, np.float32(0))
        changed += 1
        node.input[1] = f"{name}.pruned{changed}"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), node.input[1]))
    _drop_unused(graph)
    return changed


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _rows(node: onnx.NodeProto, array: np.ndarray) -> np.ndarray | None:
    """The weight as ``[out, taps, in]``; None where it has no such form."""
    if node.op_type == "Conv":
        if _attribute(node, "group", 1) != 1:
            return None
        return np.moveaxis(array.reshape(*array.shape[:2], -1), 1, -1)
    if array.ndim != 2:
        return None
    return (array if _attribute(node, "transB", 0) else array.T)[:, None, :]


def _stored(node: onnx.NodeProto, mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Back from ``[out, taps, in]`` to the operator's layout."""
    if node.op_type == "Conv":
        return np.moveaxis(mask, -1, 1).reshape(like.shape)
    return mask[:, 0, :] if _attribute(node, "transB", 0) else mask[:, 0, :].T


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
    for node in [n for n in graph.node if n.op_type == "Transpose" and n.output[0] not in used]:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
        for port in [p for p in graph.input if p.name == tensor.name]:
            graph.input.remove(port)
