"""Running compiled models: ``load`` an artifact, call it with arrays.

Needs NumPy and the standard library, nothing else: the artifact carries its own code.  The package is
``sparsec.runtime`` beside the compiler, and ``sparsec_runtime`` as the distribution of that name.
"""

if __name__ not in ("sparsec.runtime", "sparsec_runtime"):
    raise ImportError("import sparsec.runtime, not runtime: one file under two names gives two classes")

from .errors import (
    ArtifactError,
    FormatError,
    InputError,
    RunError,
    SignatureError,
    SparsecError,
    TargetError,
)
from .manifest import TensorInfo
from .model import Context, Model, load

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "Context",
    "FormatError",
    "InputError",
    "Model",
    "RunError",
    "SignatureError",
    "SparsecError",
    "TargetError",
    "TensorInfo",
    "load",
]
