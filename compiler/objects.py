"""Kernels to machine code: schedule for one CPU level, lower, and let LLVM write the object."""

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from sparsec.compiler.errors import CompileError, last_line
from sparsec.compiler.memory import aligned
from sparsec.schedules import RULE, math, schedule
from sparsec.schedules.target import Cpu

STACK_LIMIT = 16 * 1024
"""Bytes of a buffer that a kernel may keep on the stack of a thread."""

_CONFIG = {"tirx.disable_storage_rewrite": True}
"""A vector loop ends with a vector that overlaps the one before, so no buffer may take an input's place."""

_WITHOUT = ["s_tir.CompactBufferAllocation"]
"""A kernel's buffers have the size that it wants; to find that out takes half the time of a build."""


@dataclass(frozen=True)
class Built:
    """Kernels for one CPU level.

    ``library`` is TVM's module, whose functions can be called; ``workspace_size`` is the scratch memory
    in bytes that a kernel may ask for, ``rules`` says which schedule rule took each kernel.
    """

    library: tvm.runtime.Module
    workspace_size: int
    rules: dict[str, str]


def build_levels(kernels: Mapping[Cpu, tvm.IRModule]) -> list[tuple["Built", bytes]]:
    """The library and the object file of each CPU level's kernels, made side by side."""
    math.install()  # once, before there are threads: TVM's registry takes each row once

    def build(cpu: Cpu) -> tuple[Built, bytes]:
        built = build_library(kernels[cpu], cpu)
        return built, object_file(built.library)

    with ThreadPoolExecutor(len(kernels)) as pool:
        return list(pool.map(build, kernels))


def object_file(library: tvm.runtime.Module) -> bytes:
    """The ELF relocatable file of ``library``; LLVM writes it now."""
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        path = Path(folder) / "kernels.o"
        library.write_to_file(str(path), "o")
        return path.read_bytes()


def build_library(kernels: tvm.IRModule, cpu: Cpu) -> Built:
    """Schedule every PrimFunc of ``kernels`` for ``cpu`` and generate its machine code.

    Raises CompileError for what TVM cannot build, for example an operator on a type that it lacks.
    """
    try:
        return _build(kernels, cpu)
    except Exception as error:
        raise CompileError(f"kernels for {cpu.name} could not be built: {last_line(error)}") from error


def _build(kernels: tvm.IRModule, cpu: Cpu) -> Built:
    math.install()
    scheduled = schedule(kernels, cpu)
    rules = {gv.name_hint: str(f.attrs[RULE]) for gv, f in scheduled.functions.items()}
    workspace: list[int] = []
    name = f"sparsec.{cpu.name}"
    tirx.register_tir_pipeline(name, lambda: _pipeline(workspace))
    with tvm.transform.PassContext(opt_level=3, config=_CONFIG, disabled_pass=_WITHOUT):
        library = tirx.build(scheduled, target=cpu.tvm_target(), pipeline=name)
    return Built(library, max(workspace, default=0), rules)


def _pipeline(workspace: list[int]):
    """TVM's CPU lowering without checks of arguments or their alignment, and with local buffers on the stack.

    It reports the scratch memory that is left.
    """
    lower, finalize_host, finalize_device = s_tir.pipeline.default_s_tir_pipeline()

    @tvm.transform.module_pass(opt_level=0)
    def lowered(mod: tvm.IRModule, _context):
        kept = {}
        for name, func in lower(mod).functions.items():
            body, scratch = _stack_allocations(_without_alignment(_without_argument_checks(func.body)))
            kept[name] = func.with_body(body)
            workspace.append(scratch)
        return tvm.IRModule(kept, attrs=mod.attrs)

    return lowered, finalize_host, finalize_device


def _without_argument_checks(body: tirx.Stmt) -> tirx.Stmt:
    """``body`` without what TVM asks of arguments in every call: number, type, shape, strides, device.

    A plan gives each kernel what it was compiled for, always, and the checks are three quarters of a small
    kernel's code.  What depends on data, such as an index out of range, is no such error and stays.
    """

    def drop(node: tirx.AssertStmt) -> tirx.Stmt:
        about_arguments = node.error_kind.value in ("TypeError", "ValueError")
        return tirx.Evaluate(tirx.IntImm("int32", 0)) if about_arguments else node

    return tvm_ffi.structural_map(body, (tirx.AssertStmt, drop))


def _without_alignment(body: tirx.Stmt) -> tirx.Stmt:
    """``body`` with arguments that may begin at any element: a large input is read where the caller has it.

    TVM promises 64 bytes. Without that vectors are loaded by other instructions, which take as long where the
    data are aligned. What is written past the caches names its alignment itself (`schedules.stream`).
    """

    def drop(node: tirx.AttrStmt) -> tirx.Stmt:
        return node.body if node.attr_key == "storage_alignment" else node

    return tvm_ffi.structural_map(body, (tirx.AttrStmt, drop))


def _stack_allocations(body: tirx.Stmt) -> tuple[tirx.Stmt, int]:
    """``body`` with its small buffers on the stack, and the bytes of those that the runtime must give.

    TVM asks the runtime for every buffer of scope "local", however small, and LLVM can keep only what
    is on the stack in registers.  The annotation is TVM's own.
    """
    scratch = 0

    def place(node: tirx.AllocBuffer) -> tirx.AllocBuffer:
        nonlocal scratch
        dtype = tvm.DataType(str(node.buffer.dtype))
        size = prod(int(d) for d in node.buffer.shape) * -(-dtype.bits * dtype.lanes // 8)
        if size > STACK_LIMIT:
            scratch += aligned(size)
            return node
        return tirx.AllocBuffer(node.buffer, annotations={"disable_lower_builtin": tirx.IntImm("int32", 1)})

    return tvm_ffi.structural_map(body, (tirx.AllocBuffer, place)), scratch
