"""Attention on a GPU in one kernel: a block of threads has some queries against all keys, in float32.

Softmax needs no whole row.  A round has some keys: their scores are taken to the largest score so far, what
was summed before is made smaller by as much, and nothing is divided before the end (Milakov and Gimelshein,
"Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022, algorithm 1).
Sparsemax does: the scores of all keys stay in shared memory, where lanes side by side have a row and find its
threshold; no score is written to the memory of the device before there are some thousand keys.

Where there are few tiles of queries for softmax, blocks share the keys of one, and a second kernel joins what
they leave.
"""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.attention import spec_of
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.attention_online import Online
from sparsec.schedules.cuda.attention_split import Split
from sparsec.schedules.cuda.attention_tile import Shape, own_rounds, rounds, tile_for
from sparsec.schedules.cuda.attention_whole import Spilled, Whole
from sparsec.schedules.cuda.target import Gpu


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The kernel of a definition of ``Attention``; None for other functions, and where no tile fits."""
    spec = spec_of(func)
    if spec is None or 0 in (*spec.y_shape, spec.n, spec.d):
        return None
    if any(place.dtype != "float32" for place in (spec.q, spec.k, spec.v)):
        return None
    shape = Shape.of(spec)
    online = spec.normaliser == "softmax" and (spec.guard == "S" or _rowwise(spec.guard))
    kinds = (Online,) if online else (Whole, Spilled)
    tiles = ((kind, tile_for(spec, shape, gpu.shared, kind.kind)) for kind in kinds)
    kind, tile = next(((kind, tile) for kind, tile in tiles if tile), (None, None))
    if tile is None:
        return None
    if online and own_rounds(spec, tile) < rounds(spec, tile):
        kind = Split
    body = kind(spec, shape, tile, list(func.params)).body()
    made = ptx.narrow(tirx.PrimFunc(func.params, body, func.ret_type, func.attrs))
    return made.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


def _rowwise(guard) -> bool:
    """Whether the guard is ``Where(c, 0, P)`` with a ``c`` that is the same for a whole row of softmax."""
    return (
        isinstance(guard, tuple)
        and (guard[0], *guard[2:]) == ("Where", 0.0, "S")
        and (guard[1] == ("IsNaN", "S") or guard[1][0] == "operand")
    )
