"""From a plan and kernel objects to one shared library.

``link`` writes the plan as C tables, compiles them together with the C core of ``runtime/c`` and
links both with the kernels.  The library exports one symbol, ``sparsec_module_v1``, and needs
nothing but libc, libm and threads.
"""

import re
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from math import prod
from pathlib import Path

from sparsec.runtime import build
from sparsec.runtime.manifest import DTYPES

from . import elf
from .errors import CompileError
from .plan import Plan, Port, TensorRef

# dtype -> DLPack's type code and bits
_DLPACK = {
    "bool": (6, 8),
    "bfloat16": (4, 16),
    **{f"float{bits}": (2, bits) for bits in (16, 32, 64)},
    **{f"int{bits}": (0, bits) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (1, bits) for bits in (8, 16, 32, 64)},
}
_SPACES = ("input", "output", "weight", "arena")
_SYSTEM_LIBRARIES = re.compile(r"(libc|libm|libpthread|ld-linux-x86-64)\.so\.\d+")
_LINK = (
    "-shared",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
    "-Wl,-z,defs,-z,noexecstack,-z,relro,-z,now",
    "-Wl,--version-script=exports.map",
    "-Wl,-s",
)


def link(plan: Plan, objects: Sequence[bytes | Path], workspace_size: int, out: Path, level: str) -> None:
    """Link ``plan`` and its kernels into the shared library ``out``.

    ``objects``: ELF relocatable files (content or path) that define ``__tvm_ffi_<symbol>`` for the
    symbol of every step.  ``workspace_size``: the most bytes that kernels of this level hold at once
    through TVMBackendAllocWorkspace on one thread, each request rounded up to 64; a kernel that asks
    for more fails at run time with a message.  ``level``: the CPU level's name, kept for display.

    Same arguments and same compiler, same bytes.  Raises CompileError (one line) if there is no
    compiler, if a kernel is missing, or if a kernel needs a symbol that no device has.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="sparsec-") as name:
            _link(plan, objects, workspace_size, Path(name), level)
            Path(out).write_bytes((Path(name) / "model.so").read_bytes())
    except build.BuildError as e:
        raise CompileError(_blame(str(e))) from None
    except OSError as e:
        raise CompileError(f"cannot write the library {str(out)!r}: {e.strerror}") from e
