"""How many weights each layer keeps when one share is asked of the whole model.

    uniform   the same share everywhere
    global    the weights of largest magnitude in the whole model
    lamp      the largest `w^2 / sum of the squares of those in the layer that are no smaller`: with what it
              would take off the layer's own scale (Lee et al., "Layer-adaptive sparsity", 2021, eq. 3)
    erk       in proportion to `(out + in + kernel) / (out * in * kernel)`, layers that would keep more than
              all keep all (Evci et al., "Rigging the lottery", 2020)

No layer keeps less than `least` of its weights: a layer that is cut off ends the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

LEAST = 0.02


def uniform(weights: Sequence[np.ndarray], density: float) -> np.ndarray:
    return np.full(len(weights), density)


def global_magnitude(weights: Sequence[np.ndarray], density: float) -> np.ndarray:
    return _by_score([np.abs(w).ravel() for w in weights], density)


def lamp(weights: Sequence[np.ndarray], density: float) -> np.ndarray:
    return _by_score([lamp_score(w).ravel() for w in weights], density)


def erk(weights: Sequence[np.ndarray], density: float) -> np.ndarray:
    """Weights are `[out, taps, in]`."""
    sizes = np.array([w.size for w in weights], np.float64)
    raw = np.array([sum(w.shape) / w.size for w in weights])
    full = np.zeros(len(weights), bool)
    while True:
        left = density * sizes.sum() - sizes[full].sum()
        scale = left / max(float((raw * sizes)[~full].sum()), 1e-300)
        over = ~full & (raw * scale > 1)
        if not over.any():
            return np.where(full, 1.0, raw * scale)
        full |= over


def lamp_score(weight: np.ndarray) -> np.ndarray:
    """The score of each weight, in the weight's shape."""
    square = np.square(weight.astype(np.float64)).ravel()
    order = np.argsort(square, kind="stable")
    no_smaller = np.cumsum(square[order][::-1])[::-1]
    score = np.empty_like(square)
    score[order] = square[order] / np.maximum(no_smaller, 1e-300)
    return score.reshape(weight.shape)


def _by_score(scores: Sequence[np.ndarray], density: float) -> np.ndarray:
    """The share of each layer among the best `density` of all scores, none below `LEAST` (or the density)."""
    least = min(LEAST, density)
    sizes = np.array([len(score) for score in scores])
    floor = np.ceil(least * sizes).astype(int)
    # What the floor takes is taken first; the rest of each layer competes.
    rest = [np.sort(score)[: len(score) - n] for score, n in zip(scores, floor, strict=True)]
    open_ = max(round(density * sizes.sum()) - int(floor.sum()), 0)
    order = np.argsort(-np.concatenate(rest), kind="stable")[:open_]
    owner = np.repeat(np.arange(len(scores)), [len(r) for r in rest])
    return (floor + np.bincount(owner[order], minlength=len(scores))) / sizes


# Name -> (weights [out, taps, in], density of the whole) -> density of each.
DENSITIES: dict[str, Callable[[Sequence[np.ndarray], float], np.ndarray]] = {
    "uniform": uniform,
    "global": global_magnitude,
    "lamp": lamp,
    "erk": erk,
}
