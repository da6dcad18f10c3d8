"""Where a layer's output can be mended: its bias, and the sum that it goes into.

    x -> MatMul(W) -> Add(constant) -> Add(other) -> ...
         Gemm, Conv with or without their own bias

The bias is a parameter that pruning may set anew. Where the sum with a residual branch follows, it is the sum
that later layers see: the wanted output is `sum of the dense model - other of the pruned model`, which takes
back what pruning before has done to the branch.

Behind the sum may stand a Relu or Clip, which tells no values apart beyond its bounds: see `Place.unseen`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import add_constant, attribute, const_array, const_scalar, is_op, remove_dead
from sparsec.passes.nm_layers import Layer


@dataclass(frozen=True, eq=False)
class Place:
    """`bias` `[N]` is the constant that is added now (zeros: none); `free_bias` whether it can be set.

    `goal` is the value whose dense content is wanted; `other` what is added to the layer's own output there.
    """

    layer: Layer
    bias: np.ndarray
    free_bias: bool
    goal: ir.Value
    other: ir.Value | None

    def unseen(self, wanted: np.ndarray, now: np.ndarray) -> np.ndarray:
        """`wanted`, what the dense model has at the goal, with `now`, what is there now, in its place where
        an activation behind makes the same of both.

        The squared distance to this is nowhere less than the one behind the activation, so fitting to it
        again and again brings down the error that later layers see, as Zhang et al. do with a penalty
        ("Accelerating very deep convolutional networks", 2016, sec. 3.2).
        """
        low, high = _bounds(_sole_reader(self.goal))
        wanted = np.where(wanted <= low, np.minimum(now, low), wanted)
        return np.where(wanted >= high, np.maximum(now, high), wanted)

    def set_bias(self, model: ir.Model, bias: np.ndarray, suffix: str = "pruned") -> None:
        """Put `bias` `[N]` in, its name with `suffix`. Without a free bias there is none (ValueError)."""
        if not self.free_bias:
            raise ValueError(f"{self.layer.node.name} has no bias that could be set")
        node, old = self.layer.node, None
        if self.layer.standard == "MatMul":
            add = _sole_reader(node.outputs[0])
            index = 1 - [v is node.outputs[0] for v in add.inputs].index(True)
            node, old = add, add.inputs[index]
        else:
            index = 2
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            old = node.inputs[2]
        name = old.name.removesuffix(f"_{suffix}") if old is not None else f"{self.layer.value.name}_bias"
        shape = const_array(old).shape if old is not None else bias.shape
        if int(np.prod(shape)) != bias.size:
            shape = bias.shape
        array = bias.reshape(shape).astype(self.layer.array.dtype)
        node.replace_input_with(index, add_constant(model, f"{name}_{suffix}", array))
        remove_dead([old])


def find_place(layer: Layer, computed: set[ir.Value]) -> Place:
    """The place of `layer`; `computed` are the values that do not depend on layers still to be pruned."""
    value, outputs = layer.node.outputs[0], layer.weight.shape[0]
    bias, free = np.zeros(outputs), False
    if layer.standard == "MatMul":
        add = _sole_reader(value)
        given = _added(add, value)
        constant = const_array(given)
        if constant is not None and constant.size == outputs and constant.shape[-1:] == (outputs,):
            bias, free, value = constant.reshape(-1).astype(np.float64), True, add.outputs[0]
    elif len(layer.node.inputs) < 3 or layer.node.inputs[2] is None:
        free = True
    else:
        constant = const_array(layer.node.inputs[2])
        if constant is not None and constant.size in (1, outputs):
            bias, free = np.broadcast_to(constant.reshape(-1), outputs).astype(np.float64), True
    total = _sole_reader(value)
    other = _added(total, value)
    if other is None or other not in computed or other.shape is None or other.shape != value.shape:
        return Place(layer, bias, free, value, None)
    return Place(layer, bias, free, total.outputs[0], other)


def cannot(layer: Layer) -> str | None:
    """Why calibration cannot serve this layer, or None."""
    if layer.refusal:
        return layer.refusal
    node = layer.node
    if layer.standard == "ConvTranspose" and not node.attributes.keys().isdisjoint(
        ("auto_pad", "output_shape")
    ):
        return "calibration takes a ConvTranspose with pads only, not with auto_pad or output_shape"
    scaled = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) != (1.0, 1.0)
    if layer.standard == "Gemm" and scaled:
        return "calibration takes a Gemm with alpha = beta = 1 only"
    if layer.standard != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = const_array(node.inputs[2])
        if bias is None or bias.size not in (1, layer.weight.shape[0]):
            return "calibration takes a bias that is a constant of one number per output channel only"
    return None


def _bounds(node: ir.Node | None) -> tuple[float, float]:
    """Beyond which `node` makes the same of all values; infinite where it is no such activation."""
    if is_op(node, "Relu"):
        return 0.0, np.inf
    ends = [-np.inf, np.inf]
    if is_op(node, "Clip"):
        for index, value in enumerate(node.inputs[1:3]):
            limit = const_scalar(value) if value is not None else None
            ends[index] = ends[index] if limit is None else float(limit)
    return ends[0], ends[1]


def _sole_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _added(node: ir.Node | None, value: ir.Value) -> ir.Value | None:
    """What an Add adds to `value`."""
    if not is_op(node, "Add") or node.inputs[0] is node.inputs[1]:
        return None
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]
