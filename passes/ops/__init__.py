"""The operators of domain ai.sparsec, one file each family, in one table."""

from __future__ import annotations

import onnx_ir as ir

from sparsec.passes.base import PassError
from sparsec.passes.ops import entmax, integer, low_rank, nm, sparsemax, threshold, weight_quant
from sparsec.passes.ops.base import DOMAIN, MIN_OPSET, VERSION, Attribute, OpDef, install

_FAMILIES = (threshold, sparsemax, entmax, nm, low_rank, weight_quant, integer)
OPS: dict[str, OpDef] = {op.name: op for family in _FAMILIES for op in family.OPS}


def ensure_function(model: ir.Model, name: str) -> ir.Function:
    """Put the body of ``ai.sparsec.<name>`` and the opset import into ``model`` unless they are there.

    Raises PassError for an unknown name, for a model older than opset 18 and for one that imports another
    version of ai.sparsec.
    """
    if name not in OPS:
        raise PassError(f"{DOMAIN} has no operator {name!r}; it has {', '.join(OPS)}")
    return install(model, OPS[name])


def infer(node: ir.Node) -> tuple[ir.DataType | None, ir.Shape | None]:
    """Element type and shape of the output of an ai.sparsec node; PassError for a node of another kind."""
    if node.domain != DOMAIN or node.op_type not in OPS:
        raise PassError(
            f"{node.domain or 'ai.onnx'}.{node.op_type} is no {DOMAIN} operator; those are {', '.join(OPS)}"
        )
    return OPS[node.op_type].infer(node)


__all__ = ["DOMAIN", "MIN_OPSET", "OPS", "VERSION", "Attribute", "OpDef", "ensure_function", "infer"]
