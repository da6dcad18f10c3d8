"""From a plan and its launches to the library that makes them: C tables, and the C in ``runtime/c/cuda``.

The library runs on the host's CPU; the kernels are in ``kernels.fatbin``, which the loader hands to it.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from sparsec.compiler import native
from sparsec.compiler.c_tables import Dims, c_string, port, table
from sparsec.compiler.cuda.kernels import Argument, Kernels
from sparsec.compiler.memory import aligned
from sparsec.compiler.plan import Plan, Step
from sparsec.runtime import build

HOSTS = {"cuda-x86_64": "x86_64", "cuda-aarch64": "aarch64"}
"""What the manifest calls the libraries, beside the levels of CPUs, and the machines that they run on."""

_EXPORTS = ("sparsec_module_v1", "sparsec_gpu_v1")


def link(
    plan: Plan, kernels: Kernels, names: Sequence[str], ptx: str | None, toolkit: int, out: Path, level: str
) -> None:
    """Link the library of ``plan`` for the host ``level`` to ``out``.

    ``names``: the architectures in the fat binary (``sm_80``), ``ptx``: that of its PTX, ``toolkit``: the
    CUDA version that made it (13000 for 13.0).  Raises CompileError as ``native.link`` does.
    """
    with native.failures(out), tempfile.TemporaryDirectory(prefix="sparsec-") as name:
        folder, cc = Path(name), build.compiler(HOSTS[level])
        (folder / "plan.c").write_text(plan_source(plan, kernels, names, ptx, toolkit, level))
        build.run(build.compile_command(cc, "plan.c", "plan.o"), folder)
        objects = ["plan.o", *build.compile_sources(cc, build.CUDA, folder)]
        Path(out).write_bytes(native.link_objects(cc, objects, ["-ldl", "-lpthread"], folder, _EXPORTS))


def plan_source(
    plan: Plan, kernels: Kernels, names: Sequence[str], ptx: str | None, toolkit: int, level: str
) -> str:
    """The plan as C: constant tables with the layout of runtime/c/cuda/plan.h."""
    dims, args, launches = Dims(), [], []
    for number, step in enumerate(plan.steps):
        for launch in kernels.launches[step.symbol]:
            grid, block = (", ".join(map(str, extents)) for extents in (launch.grid, launch.block))
            where = f"{launch.shared}, {len(args)}, {number}"
            launches.append(f"    {{{c_string(launch.kernel)}, {{{grid}}}, {{{block}}}, {where}}},")
            args += [_arg(plan, step, a) for a in launch.args]
    ports = {"inputs": plan.inputs, "outputs": plan.outputs, "states": [s.port for s in plan.states]}
    numbers = [name.removeprefix("sm_") for name in names]
    sizes = (
        len(plan.inputs),
        len(plan.outputs),
        len(plan.steps),
        arena_size(plan, kernels),
        len(plan.weights),
        0,
    )
    lines = [
        "// The plan of one model for GPUs, written by sparsec; see cuda/plan.h.",
        '#include "cuda/plan.h"',
        "",
        *_rows(plan, kernels, dims, args, launches, ports, numbers),
        "const cuda_plan cuda_the_plan = {",
        f"    {{SPARSEC_MODULE_ABI, {', '.join(map(str, sizes))},",
        f"     {c_string(level)}, inputs, outputs, SPARSEC_CUDA, {len(plan.states)}, states}},",
        "    args, launches, labels, faults, architectures,",
        f"    {len(args)}, {len(launches)}, {len(kernels.faults)}, {len(numbers)},",
        f"    {ptx.removeprefix('sm_') if ptx else 0}, {toolkit},",
        "};",
    ]
    return "\n".join(lines) + "\n"


def _rows(plan: Plan, kernels: Kernels, dims: Dims, args, launches, ports, numbers) -> list[str]:
    tables = {name: [port(p, dims) for p in group] for name, group in ports.items()}
    return [
        "// for each shape its extents, then its strides, in elements",
        *table("int64_t", "dims", dims.lines),
        *(line for name, rows in tables.items() for line in table("sparsec_tensor", name, rows)),
        "// offset or index, space",
        *table("cuda_arg", "args", args),
        "// kernel, grid, block, dynamic shared bytes, first argument, step",
        *table("cuda_launch", "launches", launches),
        *table("char *const", "labels", [f"    {c_string(step.label)}," for step in plan.steps]),
        *table("char *const", "faults", [f"    {c_string(text)}," for text in kernels.faults]),
        *table("uint16_t", "architectures", [f"    {number}," for number in numbers]),
    ]


def arena_size(plan: Plan, kernels: Kernels) -> int:
    """Bytes of a context's tensors, and behind them what functions need between their kernels."""
    return aligned(plan.arena_size) + kernels.scratch_size


def _arg(plan: Plan, step: Step, argument: Argument) -> str:
    match argument.kind:
        case "fault":
            return "    {0, CUDA_FAULT},"
        case "scratch":
            return f"    {{{aligned(plan.arena_size) + argument.where}, CUDA_ARENA}},"
        case _:
            ref = step.args[argument.where]
            return f"    {{{ref.where}, CUDA_{ref.space.upper()}}},"
