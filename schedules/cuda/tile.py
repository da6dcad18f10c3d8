"""The tile that a function is to be cut into, where somebody has measured: an attribute of the function."""

import dataclasses
import json

from tvm import tirx

TILE = "sparsec.tile"


def with_tile(func: tirx.PrimFunc, tile) -> tirx.PrimFunc:
    """``func``, to be cut into ``tile``, a dataclass of whole numbers, by the rule that takes it."""
    return func.with_attr(TILE, json.dumps(dataclasses.asdict(tile)))


def tile_of(func: tirx.PrimFunc, kind: type):
    """The tile of that kind which ``with_tile`` gave ``func``, or None."""
    text = func.attrs.get(TILE) if func.attrs else None
    return None if text is None else kind(**json.loads(str(text)))
