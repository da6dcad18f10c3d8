"""The x86 rule for contractions: a fused function with a ``Gemm`` or ``Conv`` anchor becomes its kernel."""

import math

import tvm_ffi
from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.batch_matmul_kernel import batch_matmul_body
from sparsec.schedules.contraction import BatchMatmul, Conv, Depthwise, Gemm, find_anchor
from sparsec.schedules.contraction_epilogue import Epilogue, extract
from sparsec.schedules.contraction_kernel_conv import conv_body
from sparsec.schedules.contraction_kernel_gemm import gemm_body
from sparsec.schedules.contraction_plan import tile_plan
from sparsec.schedules.contraction_reduce import Reduction
from sparsec.schedules.depthwise_kernel import depthwise_body
from sparsec.schedules.layout import DENSE, panels
from sparsec.schedules.target import Cpu


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """The scheduled kernel of ``func``, with the same parameters; None where ``why_not`` has a reason."""
    parts = _parts(func)
    if isinstance(parts, str):
        return None
    spec, x, weights, epilogue = parts
    if isinstance(spec, Gemm):
        body = _gemm(cpu, spec.lead, spec.k, spec.n, spec.pattern, [], x, weights, epilogue)
    elif isinstance(spec, Conv) and spec.pointwise:
        lead = spec.x_shape[:-1]
        tap = [tir.i64(0), tir.i64(0)]
        body = _gemm(cpu, lead, spec.in_c, spec.out_c, spec.packed, tap, x, weights, epilogue)
    elif isinstance(spec, BatchMatmul):
        plan = tile_plan(cpu, DENSE, spec.k, spec.k, spec.m, spec.n, panels(spec.n))
        body = batch_matmul_body(cpu, spec, x, weights[0], epilogue, plan)
    elif isinstance(spec, Depthwise):
        body = depthwise_body(cpu, spec, x, weights[0], epilogue)
    else:
        reduce = Reduction(x, weights, spec.packed, spec.depth)
        own = spec.out_c // spec.groups
        stride = spec.in_c * spec.strides[1]
        plan = tile_plan(cpu, spec.packed, spec.depth, stride, spec.out_w, own, spec.group_panels)
        body = conv_body(cpu, spec, reduce, epilogue, plan)
    kernel = tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)
    return kernel.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


def _gemm(cpu, lead, depth, out, pattern, tap, x, weights, epilogue) -> tir.Stmt:
    rows = math.prod(lead)
    plan = tile_plan(cpu, pattern, depth, depth, rows, out, panels(out))
    return gemm_body(cpu, lead, out, tap, Reduction(x, weights, pattern, depth), epilogue, plan)


def why_not(func: tirx.PrimFunc) -> str | None:
    """Why ``rule`` declines ``func``, or None when it accepts."""
    parts = _parts(func)
    return parts if isinstance(parts, str) else None


def _parts(func: tirx.PrimFunc) -> tuple[object, tir.Buffer, list[tir.Buffer], Epilogue] | str:
    found = find_anchor(func)
    if found is None:
        return "no contraction in the function"
    spec, block = found
    x, weights = operands(block)
    for buffer in (x, *weights):
        if not any(buffer.same_as(p) for p in func.params):
            return f"operand {buffer.name} of the contraction is computed in the same function"
    if 0 in (*tir.shape_of(x), *spec.y_shape):
        return "an empty dimension"
    epilogue = extract(func, block)
    if isinstance(epilogue, str):
        return epilogue
    return spec, x, weights, epilogue


def operands(block: tir.Block) -> tuple[tir.Buffer, list[tir.Buffer]]:
    """The buffers of an anchor, read off ``Y = Y + X[..., I[...]] * W[...]``: X and [W, I]."""
    product = block.body.value.b
    loads: list = []
    tvm_ffi.structural_walk(product.a, (tir.TensorLoad, lambda node: loads.append(node.source)), order="pre")
    return loads[0], [product.b.source, *loads[1:2]]
