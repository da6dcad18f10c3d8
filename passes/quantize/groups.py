"""Weights of 8 or 4 bits: groups of neighbouring input channels of an output channel with one scale each.

A scale's sign puts the largest magnitude of its group at the end of the range that has one number more (-128,
-8); its size is that of a few candidates with the least squared error; it is a bfloat16, which costs nothing
since it is chosen before the weights are rounded.
"""

from __future__ import annotations

import numpy as np

BITS = (8, 4)
#: Group where none is asked for: 4 bits need a scale for fewer weights.
GROUP = {8: 64, 4: 32}
#: Scales that are tried, relative to the one that clips nothing.
_CANDIDATES = {8: (1.0, 0.96, 0.92), 4: (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)}
#: Weights at a time: what is computed of them should stay in a cache.
_CHUNK = 1 << 18


def nearest(weight: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, float]:
    """int8 values `[n, k]` and float32 scales `[n, groups]` of float32 `weight [n, k]`, and what is lost.

    What is lost is relative, in the Frobenius norm.
    """
    n, k = weight.shape
    count, rows = -(-k // group), max(1, _CHUNK // k)
    values, scale = np.empty((n, k), np.int8), np.empty((n, count), np.float32)
    lost = total = 0.0
    for start in range(0, n, rows):
        part = weight[start : start + rows]
        groups = _in_groups(part, group)
        best, error = _best_scales(groups, bits)
        q = _rounded(groups, best, bits)
        values[start : start + rows] = q.reshape(len(part), -1)[:, :k]
        scale[start : start + rows] = best[..., 0]
        lost += float(error.sum(dtype=np.float64))
        total += float(np.square(part, dtype=np.float64).sum())
    return values, scale, (lost / total) ** 0.5 if total else 0.0


def best_scales(weight: np.ndarray, bits: int, group: int, importance: np.ndarray) -> np.ndarray:
    """float32 `[n, groups]`: those of the least `sum_k importance[k] * error[k]^2` for `weight [n, k]`."""
    return _best_scales(_in_groups(weight, group), bits, _in_groups(importance[None], group)[0])[0][..., 0]


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest numbers that have 8 bits; ties away from zero."""
    return ((values.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def _in_groups(weight: np.ndarray, group: int) -> np.ndarray:
    """`[n, groups, group]` of `weight [n, k]`, padded with zeros."""
    n, k = weight.shape
    padded = np.zeros((n, -(-k // group) * group), weight.dtype)
    padded[:, :k] = weight
    return padded.reshape(n, -1, group)


def _best_scales(
    groups: np.ndarray, bits: int, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The scales `[..., 1]` of `groups [..., group]` with the least squared error, and that error."""
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)
    base = -largest / np.float32(1 << bits - 1)
    best = error = None
    for factor in _CANDIDATES[bits]:
        scale = _bfloat16(base * np.float32(factor))
        off = _rounded(groups, scale, bits) * scale
        off -= groups
        found = np.einsum("...i,...i->...", off, off if importance is None else off * importance)
        if best is None:
            best, error = scale, found
        else:
            better = found < error
            best, error = np.where(better[..., None], scale, best), np.where(better, found, error)
    return best, error


def _rounded(groups: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """The nearest integers to `groups / scale`, as float32; 0 where the scale is 0."""
    most = 1 << bits - 1
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > 1e-30)
    return np.clip(np.rint(groups * inverse), -most, most - 1)
