"""The x86 rule for contractions: a fused function with a ``Gemm`` or ``Conv`` anchor becomes its kernel."""

import math

import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import access, contraction_widened, tir
from sparsec.schedules.batch_matmul_kernel import batch_matmul_body
from sparsec.schedules.contraction import BatchMatmul, Conv, Gemm, find_anchor
from sparsec.schedules.contraction_epilogue import Epilogue, extract
from sparsec.schedules.contraction_kernel_conv import conv_body
from sparsec.schedules.contraction_kernel_gemm import gemm_body
from sparsec.schedules.contraction_kernel_strips import Rows, strips_body
from sparsec.schedules.contraction_padded import padded
from sparsec.schedules.contraction_pixels import pixel
from sparsec.schedules.contraction_plan import Extent, TilePlan, tile_plan, tile_plans
from sparsec.schedules.contraction_reduce import Reduction
from sparsec.schedules.contraction_spec import kind_of
from sparsec.schedules.depthwise_kernel import depthwise_body
from sparsec.schedules.elements import FLOAT32, INPUTS, INT8, Element
from sparsec.schedules.layout import DENSE, panels
from sparsec.schedules.target import Cpu
from sparsec.schedules.weight_quant import QuantGemm
from sparsec.schedules.weight_quant_kernel import quant_body

#: Attribute of a function: the panels that its tiles span, where measuring found better than counting.
TILE_PANELS = "sparsec.tile_panels"


def rule(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc | None:
    """The scheduled kernel of ``func``, with the same parameters; None where ``why_not`` has a reason."""
    parts = _parts(func)
    if isinstance(parts, str):
        return None
    spec, x, weights, epilogue = parts
    before = []
    if kind_of(spec) is INT8 and any(getattr(spec, "pads", ())):
        spec, x, before = padded(cpu, spec, x)
    cut = extent(spec, multiplied(cpu, spec))
    plan = cut and tile_plan(cpu, cut, int(func.attrs.get(TILE_PANELS, 0)))
    if multiplied(cpu, spec) is not kind_of(spec):
        x, before = contraction_widened.activations(cpu, x)
    if getattr(spec, "strips", None):
        groups, own = (1, spec.n) if isinstance(spec, Gemm) else (spec.groups, spec.out_c // spec.groups)
        body = strips_body(cpu, spec.strips, groups, own, _rows(spec), x, weights, epilogue)
    elif isinstance(spec, Gemm):
        reduce = Reduction(cpu, x, weights, spec.packed, spec.k, spec.kind)
        body = gemm_body(cpu, spec.lead, spec.n, [], reduce, epilogue, plan)
    elif isinstance(spec, Conv):
        reduce = Reduction(cpu, x, weights, spec.packed, spec.depth, spec.kind)
        if spec.pointwise:
            tap = [tir.i64(0), tir.i64(0)]
            body = gemm_body(cpu, spec.x_shape[:-1], spec.out_c, tap, reduce, epilogue, plan)
        else:
            body = conv_body(cpu, spec, reduce, epilogue, plan)
    elif isinstance(spec, QuantGemm):
        operands = dict(zip(spec.read_order, [x, *weights], strict=True))
        body = quant_body(cpu, spec, operands, epilogue)
    elif isinstance(spec, BatchMatmul):
        body = batch_matmul_body(cpu, spec, x, weights[0], epilogue, plan)
    else:
        body = depthwise_body(cpu, spec, x, weights[0], epilogue)
    kernel = tirx.PrimFunc(func.params, tir.seq([*before, body]), func.ret_type, func.attrs)
    return kernel.with_attrs({tir.NOALIAS: True, tir.SCHEDULED: True})


def multiplied(cpu: Cpu, spec) -> Element:
    """What tiles multiply: the element of ``spec``, or float32 where that reads copies."""
    if not isinstance(spec, Gemm | Conv) or spec.strips:
        return kind_of(spec)
    depth, rows = spec.k if isinstance(spec, Gemm) else spec.depth, math.prod(spec.y_shape[:-1])
    wide = contraction_widened.pays(cpu, spec.packed.form(depth), spec.kind, rows)
    return FLOAT32 if wide else spec.kind


def extent(spec, kind: Element | None = None) -> Extent | None:
    """What the kernel of ``spec`` cuts into register tiles of panels; None where it is cut otherwise.

    ``kind``: what tiles multiply, if it is not what is stored.
    """
    if getattr(spec, "strips", None):
        return None
    kind = kind or kind_of(spec)
    if isinstance(spec, Gemm):
        rows = math.prod(spec.lead)
        stride, written = spec.k // kind.group, rows * spec.n
        return Extent(spec.packed, spec.k, stride, rows, spec.n, panels(spec.n), 1, written, kind)
    if isinstance(spec, BatchMatmul):
        return Extent(DENSE, spec.k, spec.k, spec.m, spec.n, panels(spec.n))
    if isinstance(spec, Conv):
        rows = math.prod(spec.y_shape[:-1]) if spec.pointwise else spec.out_w
        own, stride = spec.out_c // spec.groups, spec.in_c * spec.strides[1] // kind.group
        taps, written = spec.k_h * spec.k_w, math.prod(spec.y_shape)
        return Extent(spec.packed, spec.depth, stride, rows, own, spec.group_panels, taps, written, kind)
    return None


def ranked_plans(cpu: Cpu, spec) -> list[tuple[float, TilePlan]]:
    """The tiles that a kernel of ``spec`` can be cut into with their counted costs, the cheapest first."""
    cut = extent(spec, multiplied(cpu, spec))
    return tile_plans(cpu, cut) if cut else []


def _rows(spec: Gemm | Conv) -> Rows:
    lead = spec.y_shape[:-1]

    def at(row, tap):
        coordinates = tir.unflatten(row, lead)
        if isinstance(spec, Gemm) or spec.pointwise:
            return coordinates, None
        return pixel(
            spec, *coordinates, tirx.floordiv(tap, tir.i64(spec.k_w)), tirx.floormod(tap, tir.i64(spec.k_w))
        )

    return Rows(lead, math.prod(lead), at)


def why_not(func: tirx.PrimFunc) -> str | None:
    """Why ``rule`` declines ``func``, or None when it accepts."""
    parts = _parts(func)
    return parts if isinstance(parts, str) else None


def _parts(func: tirx.PrimFunc) -> tuple[object, tir.Buffer, list[tir.Buffer], Epilogue] | str:
    found = find_anchor(func)
    if found is None:
        return "no contraction in the function"
    spec, block = found
    if kind_of(spec) in INPUTS:
        return "inputs of 16 bits, which only GPUs read for products of float32"
    x, weights = operands(spec, block)
    for buffer in (x, *weights):
        if not any(buffer.same_as(p) for p in func.params):
            return f"operand {buffer.name} of the contraction is computed in the same function"
    if 0 in (*tir.shape_of(x), *spec.y_shape):
        return "an empty dimension"
    epilogue = extract(func, block)
    if isinstance(epilogue, str):
        return epilogue
    return spec, x, weights, epilogue


def operands(spec, block: tir.Block) -> tuple[tir.Buffer, list[tir.Buffer]]:
    """The buffers of an anchor: X and [W, I, S].

    They are read off ``Y = Y + X[..., I[...]] * W[...]``; strips read ``X[..., I[S[...]]]``, conditionally.
    """
    product = block.body.value.b
    if isinstance(product, ir.Call):
        product = product.args[1]
    read: list[tir.Buffer] = []

    def visit(node):
        if not any(node.source.same_as(known) for known in read):
            read.append(node.source)

    if isinstance(spec, QuantGemm):
        tvm_ffi.structural_walk(product, (tir.TensorLoad, visit), order="pre")
        return read[0], read[1:]
    tvm_ffi.structural_walk(product.a, (tir.TensorLoad, visit), order="pre")
    activation = kind_of(spec).activation
    (x,) = (buffer for buffer in read if tir.dtype_of(buffer) == activation)
    values = access.collect(product.b, tir.TensorLoad)[-1].source  # those in its index come before
    return x, [values, *(buffer for buffer in read if not buffer.same_as(x))]
