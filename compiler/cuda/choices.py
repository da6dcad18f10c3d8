"""Sparse or dense on a GPU, layer by layer.

Without a GPU at hand nothing is measured.  A pattern that 16 channels or more share keeps neighbouring
threads on the same inputs, so half the products are half the time; the packed forms of narrower ones are
made for the lanes of CPUs, and reading through them costs a thread more than the products that they save.
"""

import onnx_ir as ir

from sparsec.compiler.choices import SHARED, Choices, finding
from sparsec.compiler.errors import CompileError
from sparsec.compiler.request import CompileRequest
from sparsec.compiler.to_relax.linear import attribute, pattern_text


def choose(model: ir.Model, request: CompileRequest) -> Choices:
    """The kernel of every node with a pattern, with the reason of each, as ``compiler.choices.choose``."""
    found, slower = Choices(), []
    for node in model.graph:
        if "m" not in node.attributes or not node.attributes["m"].as_int():
            continue
        shared = attribute(node, "block", 1) % SHARED == 0 and not attribute(node, "scattered", 0)
        kernel = "sparse" if shared and request.sparsity != "off" else "dense"
        if request.sparsity == "off":
            reason = "sparsity is off"
        elif shared:
            reason = f"estimated: a pattern shared by {SHARED} output channels skips its zeros at no cost"
        else:
            reason = (
                f"estimated: a pattern that fewer than {SHARED} output channels share has no kernel for GPUs"
            )
            slower.append(f"{node.name} ({pattern_text(node)})")
        found.kernels[node.name] = kernel
        found.findings.append(finding(node, kernel, reason))
    if request.sparsity == "require" and slower:
        raise CompileError(
            f"--sparsity require: {len(slower)} layers would run dense: {'; '.join(slower)}; "
            f"prune them to a shared pattern such as 2:4x32, or use --sparsity auto"
        )
    return found
