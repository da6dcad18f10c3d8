"""Snapshots of a context's states: one array for each, and all of them as the C core copies them.

A snapshot in C is the states' bytes in their order, one right after the other.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from . import arrays
from .errors import InputError
from .manifest import TensorInfo


def room(infos: Sequence[TensorInfo]) -> np.ndarray:
    """Uninitialised bytes for a snapshot of these states."""
    return np.empty(sum(map(_size, infos)), np.uint8)


def split(data: np.ndarray, infos: Sequence[TensorInfo]) -> dict[str, np.ndarray]:
    """The states in a snapshot's bytes, by name; views."""
    found, at = {}, 0
    for info in infos:
        found[info.name] = data[at : at + _size(info)].view(info.dtype).reshape(info.shape)
        at += _size(info)
    return found


def joined(states: Mapping, infos: Sequence[TensorInfo]) -> np.ndarray:
    """The bytes of a snapshot with these values; InputError unless there is one for each state."""
    if set(states) != {info.name for info in infos}:
        names, found = ", ".join(info.name for info in infos), ", ".join(map(str, states))
        raise InputError(
            f"a snapshot holds one array for each state ({names or 'none'}), found {found or 'none'}"
        )
    data = room(infos)
    for info, view in zip(infos, split(data, infos).values(), strict=True):
        view[...] = arrays.as_array(states[info.name], info)
    return data


def _size(info: TensorInfo) -> int:
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize
