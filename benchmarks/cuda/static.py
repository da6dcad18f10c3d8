"""What nvcc makes of the kernels of the catalogue, for every architecture: the page ``docs/cuda-kernels.md``.

python -m benchmarks.cuda.static > docs/cuda-kernels.md

Exits with 1, and says why on stderr, where a kernel spills registers, wants more shared memory than there is,
or lacks an instruction that it is about.  Needs nvcc, and nvdisasm (``pip install nvidia-cuda-nvdisasm``).
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import tvm

from sparsec.compiler.cuda.kernels import Kernels, build_kernels
from sparsec.schedules.cuda.target import ARCHITECTURES, Gpu

from .catalogue import Case, cases


@dataclass(frozen=True)
class Multiprocessor:
    """What its blocks share beside 65536 registers (CUDA C++ Programming Guide, compute capabilities)."""

    warps: int
    blocks: int
    shared: int


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164 * 1024),
    "sm_87": Multiprocessor(48, 16, 164 * 1024),
    "sm_89": Multiprocessor(48, 24, 100 * 1024),
    "sm_90": Multiprocessor(64, 32, 228 * 1024),
}
#: Registers are handed out to a warp in units of 256; a block of shared memory costs 1 kB more.
_REGISTERS, _UNIT, _RESERVED = 65536, 256, 1024


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture."""

    registers: int
    spilled: int
    static_shared: int
    instructions: Counter


def resident(arch: str, threads: int, registers: int, shared: int) -> int:
    """Blocks of a kernel that one multiprocessor holds at a time."""
    has = MULTIPROCESSORS[arch]
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // _UNIT) * _UNIT
    return min(
        has.blocks,
        has.warps // warps,
        _REGISTERS // per_warp // warps,
        has.shared // (shared + _RESERVED),
    )


def sources(some: list[Case]) -> Kernels:
    """CUDA C of all of them and their launches."""
    named = {case.name: case.definition().with_attr("global_symbol", case.name) for case in some}
    return build_kernels(tvm.IRModule(named), Gpu())


def digest(kernels: Kernels) -> str:
    """Changes when any kernel does; stands on the page, so that a test sees a stale one."""
    own = kernels.source[kernels.source.index('extern "C" __global__') :]  # what goes before is TVM's
    return hashlib.sha256(own.encode()).hexdigest()[:16]


def compile_all(source: str, arch: str) -> dict[str, Compiled]:
    """Every kernel of ``source`` for ``arch``, by its name there."""
    with tempfile.TemporaryDirectory() as folder:
        text, cubin = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        text.write_text(source)
        command = ["nvcc", "-cubin", "-O3", "-std=c++17", "-w", f"-arch={arch}", "-Xptxas", "-v", str(text)]
        done = subprocess.run([*command, "-o", str(cubin)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed for {arch}: {done.stderr[:500]}")
        listing = subprocess.run(
            [disassembler(), "-c", str(cubin)], capture_output=True, text=True, check=True
        )
    return {
        name: Compiled(*numbers, Counter(_instructions(listing.stdout, name)))
        for name, numbers in _resources(done.stderr).items()
    }


def disassembler() -> str | None:
    found = shutil.which("nvdisasm")
    if not found and (spec := find_spec("nvidia")):
        folders = (Path(place) for place in spec.submodule_search_locations)
        found = next((str(path) for folder in folders for path in folder.glob("*/bin/nvdisasm")), None)
    return found


def _resources(said: str) -> dict[str, tuple[int, int, int]]:
    """Registers, bytes spilled, bytes of static shared memory, from what ptxas says."""
    found = {}
    for part in said.split("Compiling entry function '")[1:]:
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part)) + int(
            re.search(r"(\d+) bytes stack frame", part)[1]
        )
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[part.split("'")[0]] = registers, spills, int(shared[1]) if shared else 0
    return found


def _instructions(listing: str, name: str):
    section = listing.split(f".section\t.text.{name},", 1)[1].split(".section\t", 1)[0]
    for line in section.splitlines():
        if found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9.]+)", line):
            yield found[1]


def complaints(case: Case, arch: str, shared: int, found: Compiled) -> list[str]:
    """Why the kernel is not what it should be."""
    said = []
    if found.spilled:
        said.append(f"{found.spilled} bytes of registers are spilled")
    if shared + found.static_shared > ARCHITECTURES[arch].shared:
        said.append(f"{shared + found.static_shared} bytes of shared memory, more than there are")
    for wanted in case.instructions:
        if not any(name.startswith(wanted) for name in found.instructions):
            said.append(f"no {wanted} in the machine code")
    return [f"{case.name} on {arch}: {what}" for what in said]


def page() -> tuple[str, list[str]]:
    """The page, and what is wrong."""
    some = cases()
    kernels = sources(some)
    with ThreadPoolExecutor() as beside:
        compiled = beside.map(partial(compile_all, kernels.source), ARCHITECTURES)
    by_arch = dict(zip(ARCHITECTURES, compiled, strict=True))
    wrong = []
    lines = [
        "# Kernels for GPUs, statically",
        "",
        "Made by `python -m benchmarks.cuda.static` from nvcc's report and the machine code: no kernel",
        "spills registers, each fits the shared memory of every architecture, and contains the instructions",
        "that it is about. Sizes and tiles are those of `benchmarks/cuda/catalogue.py`. Blocks: how many one",
        "multiprocessor holds at a time, and which part of its warps they are. Instructions: those of sm_80.",
        "",
        f"Sources: {digest(kernels)}",
        "",
        "| kernel | threads | shared kB | registers | "
        + " | ".join(f"blocks {a}" for a in ARCHITECTURES)
        + " | instructions |",
        "|---|---|---|---|" + "---|" * len(ARCHITECTURES) + "---|",
    ]
    for case in some:
        launch, *others = kernels.launches[case.name]  # which join what several blocks leave
        x, y, z = launch.block
        found = {arch: compiled[launch.kernel] for arch, compiled in by_arch.items()}
        for arch, one in found.items():
            wrong += complaints(case, arch, launch.shared, one)
            for other in others:
                rest = replace(case, instructions=())
                wrong += complaints(rest, arch, other.shared, by_arch[arch][other.kernel])
        shared = launch.shared + found["sm_80"].static_shared
        registers = sorted({one.registers for one in found.values()})
        cells = [
            case.name,
            x * y * z,
            f"{shared / 1024:.1f}",
            "-".join(str(r) for r in {registers[0]: 0, registers[-1]: 0}),
        ]
        for arch, one in found.items():
            blocks = resident(arch, x * y * z, one.registers, launch.shared + one.static_shared)
            part = blocks * -(-x * y * z // 32) / MULTIPROCESSORS[arch].warps
            cells.append(f"{blocks} ({part:.0%})")
        wanted = (
            f"{sum(n for i, n in found['sm_80'].instructions.items() if i.startswith(w))} {w}"
            for w in case.instructions
        )
        cells.append(", ".join(wanted))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n", wrong


def main() -> int:
    text, wrong = page()
    sys.stdout.write(text)
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
