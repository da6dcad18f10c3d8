"""What makes an ai.sparsec operator: its signature, its ONNX function body and its NumPy meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.passes.base import PassError

DOMAIN = "ai.sparsec"
VERSION = 1
MIN_OPSET = 18  # Clip/Min/Max on all floats, ReduceSum and ReduceMax with axes as input
MIN_IR_VERSION = 8  # the first with functions in a model


@dataclass(frozen=True)
class Attribute:
    """An attribute of an operator; without a default the body drops it where the node does not carry it."""

    type: ir.AttributeType
    meaning: str
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class OpDef:
    """One operator of domain ai.sparsec.

    ``inputs`` are (name, meaning), a name ending in "?" is optional.  ``body(opset)`` builds the function
    for models that import that version of the standard operators.  ``reference(*arrays, **attributes)`` is
    the NumPy meaning.  ``infer(node)`` gives dtype and shape of the output from those of the inputs (None
    where they are not known).  ``formula``, ``source`` and ``special`` (NaN, infinities, zeros) go into
    docs/operators.md.
    """

    name: str
    inputs: tuple[tuple[str, str], ...]
    formula: str
    source: str
    special: str
    body: Callable[[int], ir.Function]
    reference: Callable[..., np.ndarray]
    infer: Callable[[ir.Node], tuple[ir.DataType | None, ir.Shape | None]]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


def function(
    name: str,
    inputs: Sequence[str],
    opset: int,
    build: Callable[..., ir.Value],
    attributes: Mapping[str, Attribute] | None = None,
) -> ir.Function:
    """The function ``ai.sparsec.<name>``; ``build(tape, *input values)`` writes the body, returns the output.

    In the body an attribute of the function is ``ir.RefAttr(inner_name, outer_name, type)``.
    """
    tape = ir.tape.Tape()
    values = [ir.Value(name=i.rstrip("?")) for i in inputs]
    out = build(tape, *values)
    out.name = "Y"
    graph = ir.Graph(values, [out], nodes=tape.nodes, opset_imports={"": opset}, name=name)
    attrs = [ir.Attr(k, a.type, a.default) for k, a in (attributes or {}).items()]
    return ir.Function(DOMAIN, name, graph=graph, attributes=attrs)


def opset_of(model: ir.Model) -> int:
    """The version of the standard operators that ``model`` imports; PassError below MIN_OPSET."""
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < MIN_OPSET:
        raise PassError(
            f"ai.sparsec operators need opset {MIN_OPSET} or newer, the model imports {opset or 'none'};"
            " convert it with onnx.version_converter first"
        )
    return opset


def install(model: ir.Model, op: OpDef) -> ir.Function:
    """The body of ``op`` in ``model.functions``, put there with the opset import on first use."""
    opset = opset_of(model)
    imported = model.opset_imports.setdefault(DOMAIN, VERSION)
    if imported != VERSION:
        raise PassError(
            f"the model imports {DOMAIN} version {imported}, this sparsec has {VERSION}; use the newer one"
        )
    body = op.body(opset)
    model.ir_version = max(model.ir_version or 0, MIN_IR_VERSION)
    return model.functions.setdefault(body.identifier(), body)


def same_as_first(node: ir.Node) -> tuple[ir.DataType | None, ir.Shape | None]:
    """Shape and type inference of an operator that keeps those of its first input."""
    return node.inputs[0].dtype, node.inputs[0].shape
