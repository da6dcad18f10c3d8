"""The kernel of ``TensorGemm`` and ``TensorConv``, dense, 2:4, or with inputs that lanes pick."""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction_epilogue import extract
from sparsec.schedules.cuda import ptx
from sparsec.schedules.cuda.target import Gpu
from sparsec.schedules.cuda.tensor_gemm import find_anchor, operands
from sparsec.schedules.cuda.tensor_parts import Kernel
from sparsec.schedules.cuda.tensor_picking import Picking
from sparsec.schedules.cuda.tensor_tile import Tile, tile_for
from sparsec.schedules.cuda.tile import tile_of


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """The kernel of a function with a product, and its tail fused; None for other functions."""
    found = find_anchor(func)
    if found is None:
        return None
    spec, block = found
    epilogue = extract(func, block)
    read = None if isinstance(epilogue, str) or 0 in spec.y_shape else operands(func, block)
    if read is None:
        return None
    x, weights = read
    tile = tile_of(func, Tile) or tile_for(spec, gpu)
    body = (Picking if spec.picked else Kernel)(spec, tile, x, weights, epilogue).body()
    made = ptx.narrow(tirx.PrimFunc(func.params, body, func.ret_type, func.attrs))
    return made.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})
