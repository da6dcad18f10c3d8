"""sparsec: sparse neural networks from ONNX to one verified file.

The public names are loaded lazily, so ``import sparsec`` costs nothing and
``import sparsec.runtime`` needs numpy alone.
"""

from pathlib import Path

__version__ = "0.1.0"
__all__ = ["compile", "load", "train"]

# The packages lie beside this folder in a checkout (setup.cfg maps them).  Without this line a
# regular install, used from the checkout's root, would find this folder first and nothing in it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").exists() and (_checkout / "runtime").is_dir():
    __path__.append(str(_checkout))


def __getattr__(name: str):
    if name == "load":
        from sparsec.runtime import load

        return load
    if name == "compile":
        from sparsec.compiler import compile_file

        return compile_file
    if name == "train":
        from sparsec.passes import train

        return train
    raise AttributeError(f"module 'sparsec' has no attribute {name!r}")
