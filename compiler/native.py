"""From a plan and kernel objects to one shared library.

``link`` writes the plan as C tables, compiles them together with the C core of ``runtime/c`` and
links both with the kernels.  The library exports one symbol, ``sparsec_module_v1``, and needs
nothing but libc, libm and threads.
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

from sparsec.runtime import build
from sparsec.runtime.cpu import LEVEL_ARCHITECTURE

from . import elf
from .c_tables import DLPACK, Dims, c_string, port, table
from .errors import CompileError
from .plan import ALIGN, Plan, TensorRef

_SPACES = ("input", "output", "past", "present", "weight", "arena")
_SYSTEM_LIBRARIES = re.compile(r"(libc|libm|libdl|libpthread|ld-linux-[a-z0-9-]+)\.so\.\d+")
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
    for more fails at run time with a message.  ``level``: the CPU level, one of LEVEL_ARCHITECTURE; it says
    which compiler is needed.

    Same arguments and same compiler, same bytes.  Raises CompileError (one line) if there is no
    compiler, if a kernel is missing, or if a kernel needs a symbol that no device has.
    """
    with failures(out), tempfile.TemporaryDirectory(prefix="sparsec-") as name:
        folder, cc = Path(name), build.compiler(LEVEL_ARCHITECTURE[level])
        names = _compile(plan, objects, workspace_size, folder, level, cc)
        Path(out).write_bytes(link_objects(cc, names, ["-lm", "-lpthread"], folder))


def link_runner(
    plan: Plan, objects: Sequence[bytes | Path], workspace_size: int, out: Path, level: str
) -> None:
    """Link what ``link`` does with ``runner.c`` into the static executable ``out``, for another machine.

    The arguments and errors are those of ``link``.  The kernels are the library's; the core is compiled for
    musl's libc, the static one that ziglang has, whose types are other ones than glibc's on 32-bit machines.
    """
    with failures(out), tempfile.TemporaryDirectory(prefix="sparsec-") as name:
        folder, cc = Path(name), build.zig(build.ZIG_STATIC[LEVEL_ARCHITECTURE[level]])
        names = _compile(plan, objects, workspace_size, folder, level, cc)
        build.run(build.compile_command(cc, str(build.SOURCES / build.RUNNER), "runner.o"), folder)
        build.run([*cc, "-static", "-s", "-o", "runner", "runner.o", *names, "-lm"], folder)
        shutil.copy(folder / "runner", out)


def archive(plan: Plan, objects: Sequence[bytes | Path], workspace_size: int, level: str) -> bytes:
    """The static library for programs without a loader: plan, kernels and core, without a system.

    The arguments and errors are those of ``link``.  Who links it adds the weights as ``sparsec_weights``.
    Labels of steps are as long as in messages: exporters of TFLite models join names to hundreds of bytes.
    """
    what = f"{level}.a"
    with failures(Path(what)), tempfile.TemporaryDirectory(prefix="sparsec-") as name:
        folder, cc = Path(name), build.zig(build.ZIG_STATIC[LEVEL_ARCHITECTURE[level]])
        names = _write_model(_with_short_labels(plan), objects, workspace_size, folder, level, cc)
        names += build.compile_sources(cc, build.BARE, folder, build.BARE_FLAGS)
        return build.archive(what, names, folder).read_bytes()


def link_objects(
    cc: Sequence[str],
    names: Sequence[str],
    libraries: Sequence[str],
    folder: Path,
    exports: Sequence[str] = ("sparsec_module_v1",),
) -> bytes:
    """The shared library of the objects ``names`` in ``folder``, which exports ``exports`` and nothing
    else.
    """
    (folder / "exports.map").write_text(f"{{ global: {'; '.join(exports)}; local: *; }};\n")
    build.run([*cc, *_LINK, "-o", "model.so", *names, *libraries], folder)
    content = (folder / "model.so").read_bytes()
    _check_library(content, exports)
    return content


@contextmanager
def failures(out: Path):
    """A linker's failure as the error of a compilation."""
    try:
        yield
    except build.BuildError as e:
        raise CompileError(_blame(str(e))) from None
    except OSError as e:
        raise CompileError(f"cannot write the library {str(out)!r}: {e.strerror}") from e


def _compile(
    plan: Plan,
    objects: Sequence[bytes | Path],
    workspace_size: int,
    folder: Path,
    level: str,
    cc: Sequence[str],
) -> list[str]:
    """Writes the plan's, the kernels' and the core's objects into ``folder``; their names in link order."""
    names = _write_model(plan, objects, workspace_size, folder, level, cc)
    for name, content in _core_objects(tuple(cc)).items():
        names.append(name)
        (folder / name).write_bytes(content)
    return names


def _write_model(
    plan: Plan,
    objects: Sequence[bytes | Path],
    workspace_size: int,
    folder: Path,
    level: str,
    cc: Sequence[str],
) -> list[str]:
    """Writes the plan's and the kernels' objects into ``folder``; their names in link order."""
    contents = [o if isinstance(o, bytes) else Path(o).read_bytes() for o in objects]
    _check_kernels(plan, contents)
    names = ["plan.o"]
    for i, content in enumerate(contents):
        names.append(f"kernels{i}.o")
        (folder / names[-1]).write_bytes(content)
    (folder / "plan.c").write_text(plan_source(plan, workspace_size, level))
    build.run(build.compile_command(cc, "plan.c", "plan.o"), folder)
    return names


@cache
def _core_objects(cc: tuple[str, ...]) -> dict[str, bytes]:
    """The core's objects, which are the same for every model and level of one compilation."""
    with tempfile.TemporaryDirectory(prefix="sparsec-") as name:
        folder = Path(name)
        return {
            o: (folder / o).read_bytes()
            for o in build.compile_sources(cc, build.CORE, folder, build.tls_flags(cc))
        }


def _with_short_labels(plan: Plan) -> Plan:
    return replace(plan, steps=tuple(replace(step, label=step.label[:100]) for step in plan.steps))


def _check_kernels(plan: Plan, contents: Sequence[bytes]) -> None:
    defined: set[str] = set()
    for i, content in enumerate(contents):
        try:
            defined |= elf.symbols(content).defined
        except ValueError as e:
            raise CompileError(f"kernel object {i} cannot be linked: {e}") from None
    for step in plan.steps:
        if f"__tvm_ffi_{step.symbol}" not in defined:
            raise CompileError(
                f"step {step.label!r} needs the kernel {step.symbol!r}, which no object defines"
            )


def _check_library(data: bytes, exports: Sequence[str] = ("sparsec_module_v1",)) -> None:
    found = elf.symbols(data)
    if found.defined != set(exports):
        extra = ", ".join(sorted(found.defined - set(exports)))
        what = f"also {extra}" if extra else "nothing"
        raise CompileError(f"the linked library must export {' and '.join(exports)} alone, found {what}")
    for library in found.needed:
        if _SYSTEM_LIBRARIES.fullmatch(library) is None:
            raise CompileError(
                f"the linked library needs {library}; only libc, libm, libdl and libpthread are on devices"
            )


def _blame(text: str) -> str:
    """A linker's words, or, if a symbol is missing, its name."""
    missing = re.search(r"undefined (?:reference to|symbol:?) [`'\"]?([\w.$@]+)", text)
    if missing is None:
        return text
    name = missing.group(1)
    return (
        f"a kernel needs the symbol {name!r}, which neither libc, libm nor the runtime has; write it in TIR"
    )


# The tables.  dims, shapes and arguments are flat arrays with indices, so that the library needs few
# relocations when it is loaded.


def plan_source(plan: Plan, workspace_size: int, level: str) -> str:
    """The plan as C: constant tables with the layout of runtime/c/core/plan.h."""
    dims = Dims()
    steps, args = [], []
    for step in plan.steps:
        if re.fullmatch(r"[A-Za-z_]\w*", step.symbol, re.ASCII) is None:
            raise CompileError(
                f"step {step.label!r}: the kernel's name {step.symbol!r} must be a C identifier"
            )
        steps.append(
            f"    {{__tvm_ffi_{step.symbol}, {c_string(step.label)}, {len(args)}, {len(step.args)}}},"
        )
        args += [_arg(plan, ref, dims) for ref in step.args]
    ports = {"inputs": plan.inputs, "outputs": plan.outputs, "states": [s.port for s in plan.states]}
    tables = {name: [port(p, dims) for p in group] for name, group in ports.items()}
    kernels = sorted({step.symbol for step in plan.steps})
    sizes = (
        len(plan.inputs),
        len(plan.outputs),
        len(steps),
        plan.arena_size,
        len(plan.weights),
        workspace_size,
    )
    lines = [
        "// The plan of one model, written by sparsec; see core/plan.h.",
        '#include "core/plan.h"',
        "",
        *(f"extern tvm_kernel __tvm_ffi_{k};" for k in kernels),
        "",
        "// for each shape its extents, then its strides, in elements",
        *table("int64_t", "dims", dims.lines),
        *(line for name, rows in tables.items() for line in table("sparsec_tensor", name, rows)),
        "// offset or index, first dim, axes, space, {DLPack type code, bits, lanes}",
        *table("sparsec_arg", "args", args),
        *table("sparsec_step", "steps", steps),
        "const sparsec_plan sparsec_the_plan = {",
        f"    {{SPARSEC_MODULE_ABI, {', '.join(map(str, sizes))},",
        f"     {c_string(level)}, inputs, outputs, SPARSEC_CORE, {len(plan.states)}, states}},",
        f"    dims, args, steps, {len(args)},",
        "};",
    ]
    return "\n".join(lines) + "\n"


def _arg(plan: Plan, ref: TensorRef, dims: Dims) -> str:
    if ref.dtype not in DLPACK:
        raise CompileError(
            f"a kernel takes dtype {ref.dtype!r}, which the runtime does not know; use a wider type"
        )
    code, bits = DLPACK[ref.dtype]
    end = ref.where + prod(ref.shape) * bits // 8
    limits = {
        "input": len(plan.inputs),
        "output": len(plan.outputs),
        "past": len(plan.states),
        "present": len(plan.states),
    }
    sizes = {"weight": len(plan.weights), "arena": plan.arena_size}
    if ref.space not in _SPACES or ref.where < 0 or ref.where >= limits.get(ref.space, ref.where + 1):
        raise CompileError(f"the plan refers to {ref.space} {ref.where}, which it does not have")
    if end > sizes.get(ref.space, end) or (ref.space in sizes and ref.where % ALIGN):
        raise CompileError(
            f"the plan puts a tensor at {ref.space} bytes {ref.where}..{end}: outside or not aligned"
        )
    place = f"{ref.where}, {dims.at(ref.shape)}, {len(ref.shape)}, SPARSEC_{ref.space.upper()}"
    return f"    {{{place}, {{{code}, {bits}, 1}}}},"
