"""Which layers are to be pruned: by name, by size, and by what the pattern can do there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from sparsec.passes.base import PassError
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import Layer
from sparsec.passes.nm_pattern import NM
from sparsec.passes.nm_structure import fits

MIN_SIZE = 1024


@dataclass(frozen=True)
class Choice:
    """Globs of node names, joined by `|`: only `layers`, of these not `skip`; no weight below `min_size`."""

    layers: str = "*"
    skip: str = ""
    min_size: int = MIN_SIZE

    def check(self, names: Sequence[str]) -> None:
        """Raises `PassError` for a glob that matches none of the layers `names`: it is a misspelling."""
        for option in ("layers", "skip"):
            for glob in filter(None, getattr(self, option).split("|")):
                if names and not _matches(glob, names):
                    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                    raise PassError(
                        f"nm: {option}={glob} must match a layer with a constant weight; found {some}"
                    )

    def why_not(self, layer: Layer, nm: NM | None) -> str | None:
        """Why `layer` stays as it is, or None; `nm` None stands for a pattern without groups."""
        k, name = layer.weight.shape[-1], [node_name(layer.node)]
        if not _matches(self.layers, name):
            return f"not among layers={self.layers}"
        if _matches(self.skip, name):
            return f"named by skip={self.skip}"
        if layer.refusal:
            return layer.refusal
        if layer.weight.size < self.min_size:
            return f"{layer.weight.size} weights are fewer than min_size={self.min_size}"
        if nm is not None and k < nm.m:
            return f"the reduction axis has {k} input channels, fewer than m={nm.m}"
        if not np.any(layer.weight):
            return "every weight is zero"
        if nm is not None and layer.before == layer.after and fits(layer.weight, nm, layer.groups):
            return f"its weight has the pattern {nm} already"
        return None


def _matches(globs: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs.split("|") if glob for name in names)
