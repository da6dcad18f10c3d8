"""A layer's input and output as matrices: one row for each place where the weight is applied."""

from __future__ import annotations

import numpy as np

from sparsec.passes.graph import attribute
from sparsec.passes.nm_layers import Layer


def input_rows(layer: Layer, x: np.ndarray) -> np.ndarray:
    """`[groups, rows, taps * in]`: what each application of the canonical weight `[out, taps, in]` reads."""
    if layer.standard == "ConvTranspose":
        return _transposed_patches(layer, x)
    if layer.standard == "Conv":
        return _patches(layer, x)
    if layer.standard == "Gemm" and attribute(layer.node, "transA", 0):
        x = x.T
    return x.reshape(1, -1, x.shape[-1])


def output_rows(layer: Layer, y: np.ndarray) -> np.ndarray:
    """`[rows, out]` of the layer's output, or a value of the same shape, in the order of `input_rows`."""
    if layer.convolves:
        y = np.moveaxis(y, 1, -1)
    return y.reshape(-1, y.shape[-1])


def _patches(layer: Layer, x: np.ndarray) -> np.ndarray:
    node, kernel = layer.node, layer.array.shape[2:]
    rank = len(kernel)
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end = _pads(node, x.shape[2:], spans, strides)
    x = np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilations)
    return _by_group(layer, windows[(slice(None), slice(None), *steps, *taps)])


def _transposed_patches(layer: Layer, x: np.ndarray) -> np.ndarray:
    """With zeros between the inputs, each output reads a window of stride 1, the last tap first."""
    node, kernel = layer.node, layer.array.shape[2:]
    rank = len(kernel)
    strides, dilations = (attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    pads, extra = attribute(node, "pads", [0] * 2 * rank), attribute(node, "output_padding", [0] * rank)
    at, places, lengths = [], [], []
    for i, (size, k) in enumerate(zip(x.shape[2:], kernel, strict=True)):
        reach, given = dilations[i] * (k - 1), strides[i] * (size - 1) + 1
        outputs = given + reach + extra[i] - pads[i] - pads[i + rank]
        before = reach - pads[i]  # zeros before the first input; fewer than none leave inputs out
        first = max(before, 0)
        at.append(slice(first, first + given, strides[i]))
        places.append(slice(first - before, first - before + outputs))
        lengths.append(max(first + given, first - before + outputs + reach))
    spread = np.zeros((*x.shape[:2], *lengths), x.dtype)
    spread[(..., *at)] = x
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(spread, spans, axis=tuple(range(2, 2 + rank)))
    taps = tuple(slice(None, None, -d) for d in dilations)
    return _by_group(layer, windows[(slice(None), slice(None), *places, *taps)])


def _by_group(layer: Layer, windows: np.ndarray) -> np.ndarray:
    """`[groups, rows, taps * in]` of windows `[batch, channels, *places, *kernel]`."""
    batch, channels = windows.shape[:2]
    grouped = windows.reshape(batch, layer.groups, channels // layer.groups, *windows.shape[2:])
    grouped = np.moveaxis(np.moveaxis(grouped, 1, 0), 2, -1)  # [groups, batch, *places, *kernel, in]
    return grouped.reshape(layer.groups, -1, layer.weight.shape[1] * grouped.shape[-1])


def _pads(node, sizes, spans, strides) -> tuple[list[int], list[int]]:
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-size // stride) - 1) * stride + span - size, 0)
            for size, span, stride in zip(sizes, spans, strides, strict=True)
        ]
        less = [t // 2 for t in total]
        more = [t - half for t, half in zip(total, less, strict=True)]
        return (less, more) if auto == "SAME_UPPER" else (more, less)
    pads = [0] * (2 * len(sizes)) if auto == "VALID" else attribute(node, "pads", [0] * (2 * len(sizes)))
    return list(pads[: len(sizes)]), list(pads[len(sizes) :])
