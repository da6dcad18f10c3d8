"""The x86 rule for contractions: a fused function with a ``Gemm`` or ``Conv`` anchor becomes its kernel."""

import tvm_ffi
from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.contraction import find_anchor
from sparsec.schedules.contraction_epilogue import Epilogue, extract
from sparsec.schedules.contraction_gemm import gemm_body, gemm_plan
from sparsec.schedules.target import Cpu


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """The scheduled kernel of ``func``, with the same parameters; None where ``why_not`` has a reason."""
    parts = _parts(func)
    if isinstance(parts, str):
        return None
    spec, x, weights, epilogue = parts
    body = gemm_body(cpu, spec, x, weights, epilogue, gemm_plan(cpu, spec))
    kernel = tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)
    return kernel.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


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
