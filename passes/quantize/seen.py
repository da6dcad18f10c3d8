"""What calibration shows of a layer's input: the range of each channel, and a sample of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsec.passes.base import PassError
from sparsec.passes.prune.places import Place
from sparsec.passes.prune.rows import input_rows
from sparsec.passes.prune.walk import Observe

ROWS = 512
"""Rows of the sample, taken evenly from all batches: enough to tell 1 % of the error between two choices."""


@dataclass(eq=False)
class Seen:
    """`low` and `high` `[channels]`; `rows` float32 `[groups, rows, taps * in]`; `count` rows in all."""

    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray
    count: int

    @property
    def dead(self) -> bool:
        """Whether it is zero throughout."""
        return not (np.any(self.low) or np.any(self.high))


def look(places: Sequence[Place], observe: Observe, mask: str | None) -> dict[str, Seen]:
    """Input name -> what is seen there; rows that `mask` calls padding are left out.

    Raises PassError where an input is not finite.
    """
    firsts = {place.layer.node.inputs[0].name: place.layer for place in reversed(places)}
    lows, highs, rows, counts = ({name: [] for name in firsts} for _ in range(4))
    for batch in observe([*firsts, *([mask] if mask else [])]):
        for name, layer in firsts.items():
            x = batch[name]
            if not np.all(np.isfinite(x)):
                raise PassError(not_finite(f"the input '{name}' of a layer"))
            applied = input_rows(layer, x)
            stays = batch[mask].reshape(-1) != 0 if mask else None
            if stays is not None and len(stays) == applied.shape[1]:
                applied = applied[:, stays]
            channels = np.moveaxis(x, 1, -1) if layer.convolves else applied
            channels = channels.reshape(-1, channels.shape[-1])
            counts[name].append(applied.shape[1])
            if len(channels):
                lows[name].append(channels.min(axis=0))
                highs[name].append(channels.max(axis=0))
                rows[name].append(_evenly(applied, ROWS))
    return {name: _one(name, lows[name], highs[name], rows[name], counts[name]) for name in firsts}


def not_finite(what: str) -> str:
    return (
        f"quantize: {what} is not finite on the calibration data: it holds NaN or infinity; "
        "correct the data or the model"
    )


def _one(name: str, lows: list, highs: list, rows: list, counts: list) -> Seen:
    if not lows:
        raise PassError(f"quantize: the mask leaves no row of '{name}' in the calibration data")
    share = -(-ROWS // len(rows))
    sample = np.concatenate([_evenly(part, share) for part in rows], axis=1)
    return Seen(np.min(lows, axis=0), np.max(highs, axis=0), sample.astype(np.float32), sum(counts))


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    chosen = np.linspace(0, rows.shape[1] - 1, min(count, rows.shape[1])).astype(int)
    return np.ascontiguousarray(rows[:, chosen])
