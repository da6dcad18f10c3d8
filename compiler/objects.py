"""Kernels to machine code: schedule for one CPU level, lower, and let LLVM write the object."""

import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from sparsec.compiler.memory import aligned
from sparsec.schedules import RULE, math, schedule
from sparsec.schedules.target import Cpu

STACK_LIMIT = 1024  # bytes; TVM keeps smaller local buffers on the stack and asks the runtime for others


@dataclass(frozen=True)
class Built:
    """Kernels for one CPU level.

    ``library`` is TVM's module, whose functions can be called; ``workspace_size`` is the scratch memory
    in bytes that a kernel may ask for, ``rules`` says which schedule rule took each kernel.
    """

    library: tvm.runtime.Module
    workspace_size: int
    rules: dict[str, str]

    def object_file(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
            path = Path(folder) / "kernels.o"
            self.library.write_to_file(str(path), "o")
            return path.read_bytes()


def build_library(kernels: tvm.IRModule, cpu: Cpu) -> Built:
    """Schedule every PrimFunc of ``kernels`` for ``cpu`` and generate its machine code."""
    scheduled = schedule(kernels, cpu)
    rules = {gv.name_hint: str(f.attrs[RULE]) for gv, f in scheduled.functions.items()}
    workspace: list[int] = []
    name = f"sparsec.{cpu.name}"
    tirx.register_tir_pipeline(name, lambda: _pipeline(workspace))
    math.install()
    with tvm.transform.PassContext(opt_level=3):
        library = tirx.build(scheduled, target=cpu.tvm_target(), pipeline=name)
    return Built(library, max(workspace, default=0), rules)


def _pipeline(workspace: list[int]):
    """TVM's CPU lowering, which also reports the scratch memory that each function will ask for."""
    lower, finalize_host, finalize_device = s_tir.pipeline.default_s_tir_pipeline()

    @tvm.transform.module_pass(opt_level=0)
    def measured(mod: tvm.IRModule, _context):
        mod = lower(mod)
        workspace.extend(scratch_bytes(func) for func in mod.functions.values())
        return mod

    return measured, finalize_host, finalize_device


def scratch_bytes(func: tirx.PrimFunc) -> int:
    """What ``func`` may hold of the runtime's scratch memory at once, each request rounded up."""
    total = 0

    def visit(node: tirx.AllocBuffer) -> None:
        nonlocal total
        dtype = tvm.DataType(str(node.buffer.dtype))
        size = prod(int(d) for d in node.buffer.shape) * dtype.bits * dtype.lanes // 8
        if size >= STACK_LIMIT:
            total += aligned(size)

    tvm_ffi.structural_walk(func.body, (tirx.AllocBuffer, visit))
    return total
