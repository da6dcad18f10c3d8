"""What each layer runs as on a GPU: sparse or dense, and at which precision.

Without a GPU at hand nothing is measured: ``forms`` counts.  A layer on tensor cores rounds its operands, so
the last layers, whose rounding the outputs would see at first hand, keep float32, as on CPUs, unless so few
rows share their weights that reading these takes the time.

In float32 a pattern that four channels or more share reads an input once for all of them, so half the
products are half the time.  Where each channel has its own, inputs are read one by one, which takes as long
as four products: 1:8 gains, 2:4 where there are few rows and memory limits.  For tensor cores any pattern
will do that keeps at most two of four neighbours, whether rows share it or not.
"""

from math import prod

import numpy as np
import onnx_ir as ir

from sparsec.compiler.choices import Choices, finding, read_given
from sparsec.compiler.cuda.forms import Form, forms, why_dense
from sparsec.compiler.errors import CompileError
from sparsec.compiler.precision import FEW_ROWS, is_last
from sparsec.compiler.request import CompileRequest, gpu_names
from sparsec.compiler.to_relax.linear import PRECISION, pattern_text
from sparsec.compiler.to_relax.products import is_product, products
from sparsec.passes import Finding
from sparsec.schedules.cuda import Gpu
from sparsec.schedules.cuda.target import Architecture
from sparsec.schedules.cuda.tensor_gemm import why_not
from sparsec.schedules.depthwise import Depthwise
from sparsec.schedules.elements import FLOAT32

#: Precision that is asked for -> what tensor cores multiply.
NUMBERS = {"tf32": "tf32", "fp16": "float16", "bf16": "bfloat16"}


def half(precision: str) -> str:
    """The format of values that lie in memory with 16 bits, at a precision that has any."""
    return NUMBERS[precision] if precision in ("fp16", "bf16") else "bfloat16"


def choose(model: ir.Model, request: CompileRequest) -> Choices:
    """The kernel of every node with a pattern, with the reason of each, as ``compiler.choices.choose``.

    Layers are marked with their precision, as by ``compiler.precision.assign``; one finding for each.
    """
    found, slower = Choices(), []
    nodes = [node for node in model.graph if _has_pattern(node)]
    given = read_given(request.choices, {node.name: node for node in nodes})[0] if request.choices else {}
    device = Gpu(gpu_names(request.target)).oldest
    for node in model.graph:
        pattern = _has_pattern(node)
        lower = request.precision != "fp32" and is_product(node)
        if not pattern and not lower:
            continue
        made = products(node)
        declined = _why_float32(node, made, request.precision) if lower else None
        dtype = NUMBERS[request.precision] if lower and not declined else None
        ranked = _ranked(made, dtype, request.sparsity, device)
        if node.name in given:
            ranked = _only(given[node.name], ranked, node, made, request.choices)
        best = ranked[0][1]
        if lower and request.precision != "tf32" and _reads_narrow(node, made):
            kept = f"{NUMBERS[request.precision]} inputs"
            node.metadata_props[PRECISION] = kept
            reason = "a depthwise convolution: float32 products of inputs that lie in memory with 16 bits"
            found.findings.append(Finding("precision", node.name, "applied", reason, FLOAT32.name, kept))
        elif lower:
            node.metadata_props[PRECISION] = best.precision
            outcome = "declined" if best.precision == FLOAT32.name else "applied"
            reason = (
                declined or _compared(ranked, "precision") or "the only one for a kernel given by --choices"
            )
            found.findings.append(
                Finding("precision", node.name, outcome, reason, FLOAT32.name, best.precision)
            )
        if pattern:
            if node.name in given:
                reason = "as given by --choices"
            elif request.sparsity == "off":
                reason = "sparsity is off"
            else:
                reason = _compared(ranked, "kernel") or _no_kernel(made)
            found.kernels[node.name] = best.kernel
            found.findings.append(finding(node, best.kernel, reason))
            if best.kernel == "dense":
                slower.append(f"{node.name} ({pattern_text(node)})")
    if request.sparsity == "require" and slower:
        raise CompileError(
            f"--sparsity require: {len(slower)} layers would run dense: {'; '.join(slower)}; "
            f"prune them to a shared pattern such as 2:4x32, or use --sparsity auto"
        )
    return found


def _has_pattern(node: ir.Node) -> bool:
    return "m" in node.attributes and node.attributes["m"].as_int() != 0


def _no_kernel(made: list[tuple]) -> str:
    """Why there is no choice for a layer with a pattern."""
    return f"no kernel for GPUs skips its zeros: {why_dense(made)}"


def _only(kernel: str, ranked: list[tuple[float, Form]], node: ir.Node, made: list[tuple], path: str):
    """Those of ``ranked`` that a file of choices allows; CompileError where that is none."""
    allowed = [pair for pair in ranked if pair[1].kernel == kernel]
    if not allowed:
        raise CompileError(
            f"choices '{path}': '{node.name}' cannot run sparse, as {_no_kernel(made)}; make it 'dense' there"
        )
    return allowed


def _why_float32(node: ir.Node, made: list[tuple], precision: str) -> str | None:
    """Why a layer cannot round its operands, or None."""
    few = max(prod(spec.y_shape[:-1]) for spec, _ in made) <= FEW_ROWS
    if is_last(node.outputs[0]) and (precision == "tf32" or not few):
        return "the last layer: its rounding would be the output's"
    largest = max(float(np.abs(weight).max(initial=0)) for _, weight in made)
    if precision == "fp16" and largest > float(np.finfo(np.float16).max):
        return f"weights up to {largest:.3g} are beyond 65504, the largest float16"
    return next(filter(None, (why_not(spec) for spec, _ in made)), None)


def _reads_narrow(node: ir.Node, made: list[tuple]) -> bool:
    """Whether a layer that no tensor core computes can read 16 bits."""
    return all(isinstance(spec, Depthwise) for spec, _ in made) and not is_last(node.outputs[0])


def _ranked(
    made: list[tuple], dtype: str | None, sparsity: str, device: Architecture
) -> list[tuple[float, Form]]:
    """Seconds of each form that the products of a layer can have, the fastest first."""
    options = [form for form in forms(made, dtype) if sparsity != "off" or form.kernel == "dense"]
    ranked = [
        (sum(form.seconds(spec, weight.size, device) for spec, weight in made), form) for form in options
    ]
    # Of equal ones the sparse one, and the narrower: it is smaller.
    return sorted(ranked, key=lambda pair: (pair[0], pair[1].weight_bytes))


def _compared(ranked: list[tuple[float, Form]], what: str) -> str | None:
    """The fastest form against the next one that differs in ``what``; None where none does."""
    (seconds, best), *rest = ranked
    for other_seconds, other in rest:
        if getattr(other, what) != getattr(best, what):
            return f"estimated: {best.name} {seconds / other_seconds:.2f}x the time of {other.name}"
    return None
