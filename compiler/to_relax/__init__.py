"""ONNX to Relax: TVM's importer with a table of our own converters in front of its own."""

from sparsec.compiler.to_relax.importer import Importer

__all__ = ["Importer"]
