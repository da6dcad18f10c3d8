"""Which operators the compiler takes: the check of a model against ``table`` and ``forms``.

python -m sparsec.compiler.ingest.support > docs/onnx-ops.md
"""

import sys

import onnx_ir as ir

from sparsec.compiler.ingest import contrib, edit
from sparsec.compiler.ingest.errors import IngestError, quoted
from sparsec.compiler.ingest.forms import FORMS
from sparsec.compiler.ingest.table import DTYPES, EXPANDED, IMPORTED, OWN, QUANTISED, REFUSED, RESOLVED

SPARSEC_DOMAIN = "ai.sparsec"


def handled(node: ir.Node) -> bool:
    """Whether something further down takes this operator, its dtypes left aside."""
    if node.domain:
        return node.domain == SPARSEC_DOMAIN
    return node.op_type in IMPORTED or node.op_type in OWN


def check(model: ir.Model) -> None:
    """Raise one ``IngestError`` that lists every input, node and value that cannot be compiled."""
    problems = []
    for value in model.graph.inputs:
        if (problem := _value_problem(value)) is not None:
            problems.append(f"input {quoted(value.name)} {problem}")
    for node in model.graph:
        if (reason := _node_problem(node)) is not None:
            problems.append(f"{_describe(model, node)}: {reason}")
    if problems:
        things = "1 thing" if len(problems) == 1 else f"{len(problems)} things"
        raise IngestError(f"{things} in the model cannot be compiled: " + "; ".join(problems))


def _describe(model: ir.Model, node: ir.Node) -> str:
    version = model.graph.opset_imports.get(node.domain, "unknown")
    dtypes = ", ".join(v.dtype.name if v is not None and v.dtype else "-" for v in node.inputs)
    domain = node.domain or "ai.onnx"
    return f"{node.op_type} {quoted(node.name)} ({domain} opset {version}; {dtypes or 'no input'})"


def _node_problem(node: ir.Node) -> str | None:
    if not handled(node):
        if node.domain == contrib.DOMAIN and node.op_type in contrib.TABLE:
            return "this form of it has no conversion; export the model with standard operators only"
        if node.domain:
            return "sparsec has no conversion for it; export the model with standard operators only"
        if node.op_type in RESOLVED:
            return f"supported only {RESOLVED[node.op_type]}"
        return REFUSED.get(node.op_type, "sparsec has no conversion for it")
    for op_type, refused, reason in FORMS:
        if not node.domain and node.op_type == op_type and refused(node):
            return reason
    for value in node.outputs:
        if value.name and (problem := _value_problem(value)) is not None:
            return f"output {quoted(value.name)} {problem}"
    return None


def _value_problem(value: ir.Value) -> str | None:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        kind = type(value.type).__name__.removesuffix("Type").lower()
        return f"is a {kind}, only tensors are supported"
    if not value.dtype:
        return "has no element type, and none can be inferred"
    if value.dtype.name not in DTYPES:
        return f"has element type {value.dtype.name}, supported are {', '.join(DTYPES)}"
    if edit.static_shape(value) is None:
        shape = "no shape" if value.shape is None else f"shape {value.shape}"
        return f"has {shape}, which does not follow from the sizes of the inputs"
    return None


def page() -> str:
    """``docs/onnx-ops.md``: the table for people."""
    rows = [(name, "yes") for name in IMPORTED]
    rows += [(name, "yes") for name in OWN]
    rows += [(name, "yes, as the standard operators that define it") for name in EXPANDED]
    rows += [(name, "yes, between QuantizeLinear and DequantizeLinear") for name in QUANTISED]
    rows += [(name, text) for name, text in RESOLVED.items()]
    rows += [(name, f"no: {text}") for name, text in REFUSED.items()]
    notes: dict[str, list[str]] = {}
    for op_type, _, reason in FORMS:
        notes.setdefault(op_type, []).append(f"not this form: {reason}")
    lines = [
        "# ONNX operators",
        "",
        "Written by `python -m sparsec.compiler.ingest.support > docs/onnx-ops.md`; a test keeps it current.",
        "",
        "Models of opset 7 to 26 are converted to opset 20 first. What depends on weights alone is computed",
        "when the model is compiled, so an operator that is missing here does no harm there.",
        "",
        f"Element types: {', '.join(DTYPES)}.",
        "",
        "## Standard operators",
        "",
        "| operator | taken |",
        "|---|---|",
    ]
    lines += [f"| {name} | {'; '.join([text, *notes.get(name, [])])} |" for name, text in sorted(rows)]
    lines += [
        "",
        f"## ONNX Runtime's operators (domain {contrib.DOMAIN})",
        "",
        "Replaced by standard operators: " + ", ".join(sorted(contrib.TABLE)) + ".",
        "",
        "## Other domains",
        "",
        f"`{SPARSEC_DOMAIN}`: see [operators.md](operators.md). Functions that a model defines are inlined.",
        "Everything else is refused.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
