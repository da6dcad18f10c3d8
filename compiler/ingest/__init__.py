"""Ingest: what real exporters write becomes a model in one fixed form that the rest relies on.

The form: opset 20 of the standard operators, every value with a dtype and a static shape, weights as
initializers that are not inputs, no functions but those of domain ``ai.sparsec``, no control flow, no
shape arithmetic, every node with a unique name, and only operators that the compiler takes.
"""

if __name__ != "sparsec.compiler.ingest":
    raise ImportError("import sparsec.compiler.ingest: one file under two names gives two classes")

from typing import TYPE_CHECKING

from sparsec.compiler.ingest.errors import IngestError

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["OPSET", "SOURCE_DIMS", "IngestError", "ingest"]

OPSET = 20
"""The opset of an ingested model: the newest for which TVM's importer has an implementation of
everything that an older model converts to, and the first that has Gelu."""

SOURCE_DIMS = "sparsec.dims"
"""Key in ``metadata_props`` of each graph input and output: the dims as the source model declares them,
a JSON list of sizes, names and null (nothing said)."""


def ingest(path, shapes=None, dims=None, *, integers=True, log=lambda line: None) -> "onnx_ir.Model":
    """Load the ONNX file at ``path`` and bring it into the fixed form.

    Args:
        path: an ``.onnx`` file; its external data must lie in the same folder or below.
        shapes: input name to its full shape, a tuple of positive sizes.
        dims: symbolic dim name to its size.
        integers: keep the integer weights of layers whose input is quantised, too; else they become floats.
        log: called with one line for each thing a user should know: an assumed batch size, an
            operator that was rewritten, a value that was dropped.

    Returns:
        An ``onnx_ir.Model`` that computes what the source computes, up to rounding.  Inputs and outputs
        keep their names and order; their ``metadata_props[SOURCE_DIMS]`` hold the source's dims.

    Raises:
        IngestError: one line with who, what was required, what was found and what to do.
    """
    # The imports wait until here, so that the command line starts without onnx.
    from sparsec.compiler.ingest import form

    return form.ingest(path, dict(shapes or {}), dict(dims or {}), integers, log)
