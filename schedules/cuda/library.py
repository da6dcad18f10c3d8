"""TVM's own schedules for GPUs (dlight), each as a rule: a function scheduled, or None."""

from math import prod

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.dlight import gpu as dlight

from sparsec.schedules import tir
from sparsec.schedules.cuda.target import STATIC_SHARED, WARP, Gpu


def matmul(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """Register tiles of products staged in shared memory: matrices, and convolutions as matrices."""
    return _apply(dlight.Matmul(), func, gpu)


def reduction(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """One sum, spread over threads: across rows, or along them."""
    return _apply(dlight.Reduction(), func, gpu)


def rows(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """A block for each row, for functions that reduce it, maybe several times; None where rows are short."""
    return _apply(dlight.GeneralReduction(), func, gpu) if _longest_sum(func) >= WARP else None


def transpose(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """Through shared memory, so that both sides are read and written in runs."""
    return _apply(dlight.Transpose(), func, gpu)


def fallback(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """A thread for each element of each stage; sums run along in their thread."""
    return _apply(dlight.Fallback(), func, gpu)


def _longest_sum(func: tirx.PrimFunc) -> int:
    """The most elements that a block of the function reduces to one."""
    extents = [1]

    def visit(block):
        reduced = [i.dom.extent for i in block.iter_vars if i.iter_type == tirx.IterVar.CommReduce]
        extents.append(prod(int(e) for e in reduced))

    tvm_ffi.structural_walk(func.body, (tir.Block, visit))
    return max(extents)


def _apply(rule, func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    target = gpu.tvm_target()
    try:
        with target:
            found = rule.apply(func, target, False)
    except Exception:
        # The rules try what they do not know beforehand to be allowed, and their schedules raise then.
        return None
    if found is None:
        return None
    scheduled = found.mod["main"].with_attrs(func.attrs)
    if not _all_on_threads(scheduled.body.block.body) or shared_bytes(scheduled) > STATIC_SHARED:
        return None
    return scheduled


def _all_on_threads(stmt: tir.Stmt) -> bool:
    """Whether no block is left to the host, as the rules leave what follows a transposition."""
    if isinstance(stmt, tirx.For):
        return stmt.kind == tirx.ForKind.THREAD_BINDING or _all_on_threads(stmt.body)
    if isinstance(stmt, tirx.SeqStmt):
        return all(map(_all_on_threads, stmt.seq))
    return not isinstance(stmt, tir.BlockRealize)


def shared_bytes(func: tirx.PrimFunc) -> int:
    """Shared memory of a scheduled function's blocks, once each buffer is as small as its use."""
    passes = [
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
    ]
    compact = tvm.ir.transform.Sequential(passes)(tvm.IRModule({"main": func}))["main"]
    sizes = []

    def visit(block):
        for buffer in block.alloc_buffers:
            if buffer.scope().startswith("shared"):
                bits = tvm.DataType(tir.dtype_of(buffer)).bits
                sizes.append(prod(tir.shape_of(buffer)) * -(-bits // 8))

    tvm_ffi.structural_walk(compact.body, (tir.Block, visit))
    return sum(sizes)
