"""Remove channels that no layer reads, wherever they can be followed: `dead_channels` for any graph.

What is summed over all channels on the way (a norm, a softmax, a product of heads) would change, so then none
can go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsec.passes.channel_rules import ELEMENTWISE, REDUCE, At
from sparsec.passes.channels import ChannelSet
from sparsec.passes.graph import add_constant, const_array, is_op, node_name
from sparsec.passes.ops import DOMAIN
from sparsec.passes.permute import rewrite

_EACH = [
    *ELEMENTWISE,
    "AveragePool",
    "BatchNormalization",
    "Concat",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
]
_EACH += ["GlobalMaxPool", "InstanceNormalization", "MaxPool", "Transpose"]


def unread(channels: ChannelSet) -> np.ndarray:
    """bool `[size]`: the channels that all readers have only zeros for; none where nothing reads them."""
    dead = np.full(channels.size, bool(channels.readers))
    for layer, inner in channels.readers:
        dead &= ~np.any(layer.weight, axis=(0, 1)).reshape(channels.size, inner).any(axis=1)
    return dead


def why_not(channels: ChannelSet) -> str | None:
    """Why no channel can go, or None."""
    if channels.refusal is not None:
        return channels.refusal
    if channels.run < channels.size:
        return f"they are cut into heads of {channels.run}"
    places = [*channels.values.values(), *(fold.at for fold in channels.folds)]
    if any(len(at.axes) > 1 for at in places):
        return "they lie along several axes"
    for node in channels.nodes:
        each = is_op(node, *_EACH) or node.domain == DOMAIN
        each |= is_op(node, *REDUCE) and node.outputs[0] in channels.values
        each |= is_op(node, "Reshape") and const_array(node.inputs[1]) is not None
        if not each:
            return f"{node_name(node)} ({node.op_type}) depends on all of them"
    return None


def remove(model: ir.Model, moves: Sequence[tuple[ChannelSet, np.ndarray]]) -> None:
    """Of each set leave only the channels `kept` (bool `[size]`), in place. `unread` has to hold for the
    others, and `why_not` to be None. The layers of all sets are stale after."""
    rewrite(model, [(channels, np.flatnonzero(kept)) for channels, kept in moves], "_kept")
    for channels, kept in moves:
        left = int(kept.sum())
        for maker in channels.makers:
            if maker.groups > 1:
                maker.node.attributes["group"] = ir.AttrInt64("group", left)
        for node in channels.nodes:
            if is_op(node, "Reshape"):
                _reshape(model, node, channels.values[node.outputs[0]], left)
        for value, at in channels.values.items():
            sizes = list(value.shape)
            sizes[at.axes[0]] = left * at.inner
            value.shape = ir.Shape(sizes)


def _reshape(model: ir.Model, node: ir.Node, at: At, left: int) -> None:
    shape = const_array(node.inputs[1]).copy()
    if shape[at.axes[0]] > 0:  # else it copies the size, or infers it
        shape[at.axes[0]] = left * at.inner
        node.replace_input_with(1, add_constant(model, f"{node.inputs[1].name}_kept", shape))
