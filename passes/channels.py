"""Which channels of a model belong together: the axes that can only be permuted all at once.

A permutation of the channels that a layer makes changes nothing when all that reads them is permuted along:

    MatMul, Gemm, Conv (rows of W, bias) -> elementwise, norms, ... -> MatMul, Gemm, Conv (columns of W)

From the output of a layer the channels are followed to every node that sees them, through the operators in
`channel_rules`, forwards and backwards, until constants end each way (`Fold`). One `ChannelSet` comes of
it, with the first reason, if any, for which its channels cannot move: an output of the model, an operator
without a rule. It is the dependency graph of Fang et al., "DepGraph", 2023, for permutations.

Where channels are cut into heads, they may move within a head, in each head differently: attention's values
up to the output projection; queries and keys, whose product sums over them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsec.passes.channel_rules import OUTPUT, RULES, SPARSEC_RULES, At, Refusal, Ties, sizes_of
from sparsec.passes.graph import attribute, const_array, dims, is_op, node_name
from sparsec.passes.nm_layers import Layer, find_layers
from sparsec.passes.ops import DOMAIN


@dataclass(frozen=True, eq=False)
class Fold:
    """`node.inputs[index]` is the constant `array`, whose channels are `at`."""

    node: ir.Node
    index: int
    array: np.ndarray
    at: At


@dataclass(eq=False)
class ChannelSet:
    """`size` channels that move together, each within its run of `run`: index c stays in `c // run`.

    `makers` have them as rows of their weight, `readers` as columns, each channel `inner` of them; `folds`
    are all constants that have to follow, those weights among them, `values` what is computed of them and
    `nodes` the other nodes on the way. `refusal` says why none can move.
    """

    size: int
    run: int
    makers: list[Layer] = field(default_factory=list)
    readers: list[tuple[Layer, int]] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    values: dict[ir.Value, At] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    refusal: str | None = None


def find_channels(model: ir.Model) -> list[ChannelSet]:
    """Every set of channels that a layer of the main graph makes, in graph order; shapes must be inferred."""
    layers = {layer.node: layer for layer in find_layers(model) if layer.node.graph is model.graph}
    owner: dict[ir.Value, ChannelSet] = {}
    found = []
    for layer in layers.values():
        value = layer.node.outputs[0]
        if value not in owner and layer.refusal is None and dims(value) is not None:
            at = At((1 if layer.convolves else len(value.shape) - 1,))
            found.append(_Search(layers, owner, layer.weight.shape[0]).run(value, at))
    return found


class _Search:
    """Follows channels from one value on; `owner` says which values other searches have reached."""

    def __init__(self, layers: dict[ir.Node, Layer], owner: dict[ir.Value, ChannelSet], size: int):
        self.layers, self.owner = layers, owner
        self.found = ChannelSet(size, size)
        self.pending: list[ir.Value] = []

    def run(self, value: ir.Value, at: At) -> ChannelSet:
        self._reach(value, at)
        while self.pending:
            value = self.pending.pop()
            if value.is_graph_output():
                self._refuse(f"{value.name} is an output of the model")
            ends = [(use.node, use.idx) for use in value.uses()]
            if value.producer() is not None:
                ends.append((value.producer(), OUTPUT))
            else:
                self._refuse(f"{value.name} is an input of the model")
            for node, index in ends:
                try:
                    for other, there in self._ties(node, index, self.found.values[value]):
                        self._join(node, other, there)
                except Refusal as refusal:
                    self._refuse(f"{node_name(node)} ({node.op_type}) {refusal}")
        return self.found

    def _refuse(self, reason: str) -> None:
        self.found.refusal = self.found.refusal or reason

    def _ties(self, node: ir.Node, index: int, at: At) -> Ties:
        """Which other inputs of `node`, or its output, have the channels that `index` has."""
        if is_op(node, "Shape"):
            return iter(())
        if node.graph is not next(iter(self.layers)).graph:
            raise Refusal("is in a subgraph")
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            raise Refusal("has more than one output")
        if node in self.layers:
            return self._through_layer(self.layers[node], index, at)
        rules = RULES if is_op(node, node.op_type) else SPARSEC_RULES if node.domain == DOMAIN else {}
        if node.op_type not in rules:
            raise Refusal("cannot be followed")
        if node not in self.found.nodes:
            self.found.nodes.append(node)
        return rules[node.op_type](node, index, at)

    def _join(self, node: ir.Node, index: int, at: At) -> None:
        """`node` has the channels at `index` too: go on from there, or note the constant."""
        value = node.outputs[0] if index == OUTPUT else node.inputs[index]
        sizes = [sizes_of(value)[axis] for axis in at.axes]
        if not all(isinstance(size, int) for size in sizes) or math.prod(sizes) != self.found.size * at.inner:
            raise Refusal("joins them with something of another size")
        if len(sizes) > 1:
            self.found.run = math.gcd(self.found.run, sizes[-1] // at.inner)
        array = const_array(value) if index != OUTPUT else None
        if array is not None:
            self._fold(node, index, array, at)
        elif value not in self.owner:
            self._reach(value, at)
        elif self.found.values.get(value) != at:
            raise Refusal("joins them in another order")

    def _reach(self, value: ir.Value, at: At) -> None:
        self.owner[value] = self.found
        self.found.values[value] = at
        self.pending.append(value)

    def _fold(self, node: ir.Node, index: int, array: np.ndarray, at: At) -> None:
        old = [fold.at for fold in self.found.folds if (fold.node, fold.index) == (node, index)]
        # A layer may read what it makes, on the way round a residual sum; its weight then has them twice.
        if at not in old and old and node not in self.layers:
            raise Refusal("joins them in another order")
        if at not in old:
            self.found.folds.append(Fold(node, index, array, at))

    def _through_layer(self, layer: Layer, index: int, at: At) -> Ties:
        node = layer.node
        here = node.outputs[0] if index == OUTPUT else node.inputs[index]
        axis = 1 if layer.convolves else len(sizes_of(here)) - 1
        if layer.refusal is not None or layer.before != layer.standard:
            raise Refusal("has a form or a pattern that stays as it is")
        if len(layer.value.uses()) > 1:
            raise Refusal("shares its weight with another layer")
        if (
            index > 0
            or at.axes != (axis,)
            or (layer.convolves and at.inner > 1)
            or attribute(node, "transA", 0)
        ):
            raise Refusal("reads them along another axis")
        depthwise = layer.groups == self.found.size == layer.weight.shape[0]
        if layer.groups > 1 and not depthwise:
            raise Refusal("is a grouped convolution")
        rows, columns = (0, 1) if layer.standard == "Conv" or attribute(node, "transB", 0) else (1, 0)
        if layer.groups > 1:
            rows = 0
        if index == 0 and not (depthwise and layer.groups > 1):
            self.found.readers.append((layer, at.inner))
            self._fold(node, 1, layer.array, At((columns,), at.inner))
        elif layer not in self.found.makers:
            self.found.makers.append(layer)
            self._fold(node, 1, layer.array, At((rows,)))
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                yield from self._bias(node)
            if layer.groups > 1:
                yield (OUTPUT if index == 0 else 0), at

    def _bias(self, node: ir.Node) -> Ties:
        if const_array(node.inputs[2]) is None:
            raise Refusal("has a bias that is computed")
        sizes = sizes_of(node.inputs[2])
        if math.prod(sizes) > 1:
            yield 2, At((len(sizes) - 1,))
