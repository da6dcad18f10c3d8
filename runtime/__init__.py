"""Running compiled models: ``load`` an artifact, call it with arrays.

Needs NumPy and the standard library, nothing else: the artifact carries its own code.
"""

if __name__ != "sparsec.runtime":
    raise ImportError("import sparsec.runtime, not runtime: one file under two names gives two classes")

from .errors import ArtifactError, FormatError, InputError, RunError, SparsecError, TargetError
from .manifest import TensorInfo
from .model import Context, Model, load

__all__ = [
    "ArtifactError",
    "Context",
    "FormatError",
    "InputError",
    "Model",
    "RunError",
    "SparsecError",
    "TargetError",
    "TensorInfo",
    "load",
]
