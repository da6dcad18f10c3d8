"""Permute channels between layers: a change of the weights alone, which leaves the function as it is.

    W_P[order], b_P[order], constants between [order], W_Q[:, order]

`channels` says what has to be permuted together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import PassError
from sparsec.passes.channel_rules import At
from sparsec.passes.channels import ChannelSet
from sparsec.passes.graph import add_constant, remove_dead


def permute(model: ir.Model, moves: Sequence[tuple[ChannelSet, np.ndarray]]) -> None:
    """For each of `moves` put channel `order[c]` in the place of channel c, in place.

    Raises `PassError` where channels cannot move, or not so; then nothing has changed. The layers of all sets
    are stale after.
    """
    for channels, order in moves:
        _check(channels, order)
    rewrite(model, moves, "_permuted")


def rewrite(model: ir.Model, moves: Sequence[tuple[ChannelSet, np.ndarray]], suffix: str) -> None:
    """Put a new constant for each fold of the sets, called as the old one with `suffix`, that has the
    channels `order`: all in another order, or some."""
    arrays: dict[tuple[ir.Node, int], np.ndarray] = {}
    for channels, order in moves:
        for fold in channels.folds:  # a weight may have channels as rows and as columns
            key = (fold.node, fold.index)
            arrays[key] = _taken(arrays.get(key, fold.array), fold.at, channels.size, order)
    for (node, index), array in arrays.items():
        old = node.inputs[index]
        name = f"{old.name.removesuffix(suffix)}{suffix}"
        node.replace_input_with(index, add_constant(model, name, array))
        remove_dead([old])


def _check(channels: ChannelSet, order: np.ndarray) -> None:
    if channels.refusal is not None:
        raise PassError(f"permute: the channels cannot move: {channels.refusal}")
    every = np.arange(channels.size)
    runs = np.asarray(order) // channels.run
    if not np.array_equal(np.sort(order), every) or not np.array_equal(runs, every // channels.run):
        raise PassError(
            f"permute: an order of {channels.size} channels that stay in their runs of {channels.run} "
            "is required"
        )


def _taken(array: np.ndarray, at: At, size: int, order: np.ndarray) -> np.ndarray:
    front = np.moveaxis(array, at.axes, range(len(at.axes)))
    rest = front.shape[len(at.axes) :]
    sizes = front.shape[: len(at.axes)] if len(at.axes) > 1 else (len(order) * at.inner,)
    rows = front.reshape(size, at.inner, *rest)[order]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(*sizes, *rest), range(len(at.axes)), at.axes))
