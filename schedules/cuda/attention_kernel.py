"""Attention on a GPU in one kernel: a block of threads has some queries against all keys.

Softmax needs no whole row.  A round has some keys: their scores are taken to the largest score so far, what
was summed before is made smaller by as much, and nothing is divided before the end (Milakov and Gimelshein,
"Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022, algorithm 1).
Sparsemax and entmax do: the scores of all keys stay in shared memory, where lanes side by side have a row and
find its threshold; no score is written to the memory of the device before there are some thousand keys.

Where there are few tiles of queries, blocks share the keys of one, and another kernel joins what they leave.
"""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.attention import Attention, spec_of
from sparsec.schedules.cuda import attention_tensor_tile, ptx
from sparsec.schedules.cuda.attention_online import Online
from sparsec.schedules.cuda.attention_split import Split
from sparsec.schedules.cuda.attention_split_whole import SplitWhole
from sparsec.schedules.cuda.attention_tensor import TensorOnline, TensorSpilled, TensorSplit, TensorWhole
from sparsec.schedules.cuda.attention_tensor_tile import TensorShape
from sparsec.schedules.cuda.attention_tile import Shape, tile_for
from sparsec.schedules.cuda.attention_whole import Spilled, Whole
from sparsec.schedules.cuda.target import Gpu

#: For scores that are forgotten and for whole rows of them: the first that takes it and has a tile.
KINDS = (Split, Online), (SplitWhole, Whole, Spilled)
TENSOR_KINDS = (TensorSplit, TensorOnline), (TensorWhole, TensorSpilled)


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The kernel of a definition of ``Attention``; None for other functions, and where no tile fits."""
    spec = spec_of(func)
    if spec is None or 0 in (*spec.y_shape, spec.n, spec.d):
        return None
    made = _kernel(spec, gpu)
    if made is None:
        return None
    kind, shape, tile = made
    body = kind(spec, shape, tile, list(func.params)).body()
    made = ptx.narrow(tirx.PrimFunc(func.params, body, func.ret_type, func.attrs))
    return made.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


def why_not_narrow(spec: Attention, gpu: Gpu) -> str | None:
    """Why there is no kernel for these operands of 16 bits, or None."""
    apart = attention_tensor_tile.not_in_pairs(spec)
    if apart:
        return f"its {apart} do not lie in pairs of neighbours"
    return None if _kernel(spec, gpu) else "no tile has room for its heads"


def _kernel(spec: Attention, gpu: Gpu):
    """The class of the kernel with its shape and tile, or None."""
    if spec.bytes or spec.narrow and attention_tensor_tile.not_in_pairs(spec):
        return None
    online, whole = TENSOR_KINDS if spec.narrow else KINDS
    shape = (TensorShape if spec.narrow else Shape).of(spec)
    for kind in online if _forgets(spec) else whole:
        if spec.narrow:
            tile = attention_tensor_tile.tile_for(spec, shape, gpu, kind.kind)
        else:
            tile = tile_for(spec, shape, gpu.shared, kind.kind)
        if tile and kind.takes(spec, tile):
            return kind, shape, tile
    return None


def _forgets(spec: Attention) -> bool:
    """Whether scores can be forgotten after each round of keys."""
    return spec.normaliser == "softmax" and (spec.guard == "S" or _rowwise(spec.guard))


def _rowwise(guard) -> bool:
    """Whether the guard is ``Where(c, 0, P)`` with a ``c`` that is the same for a whole row of softmax."""
    return (
        isinstance(guard, tuple)
        and (guard[0], *guard[2:]) == ("Where", 0.0, "S")
        and (guard[1] == ("IsNaN", "S") or guard[1][0] == "operand")
    )
