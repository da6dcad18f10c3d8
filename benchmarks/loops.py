"""The innermost loops of contraction kernels on CPUs that are not here: what they hold, what bounds them.

`python -m benchmarks loops` builds a kernel for each CPU level and packed form, finds the innermost loop with
most multiply-adds in LLVM's assembly, counts, and lets llvm-mca (Debian: llvm-19) simulate it on cores of
that architecture.  Nothing is run.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass

import tvm

from sparsec.compiler.objects import build_library
from sparsec.schedules.contraction import Gemm, conv, packed_for
from sparsec.schedules.layout import DENSE, PANEL, Pattern
from sparsec.schedules.target import LEVELS, Cpu

from .results import FOLDER

SIMULATORS = ("llvm-mca-19", "llvm-mca")
"""The first that is installed is taken: Neoverse's cores are known from version 17 on."""
ROUNDS = 100
"""Iterations that llvm-mca simulates."""


@dataclass(frozen=True)
class Isa:
    """Regular expressions: what lines start with, accesses to the stack, numbers' registers in a load.

    ``cores`` are those to simulate: name -> llvm-mca's.  At ``precision`` a lane multiplies ``group`` values.
    """

    multiply_add: str
    load: str
    store: str
    stack: str
    filled: str
    cores: dict[str, str]
    precision: str = "float32"
    group: int = 1


_AARCH64 = (r"ld", r"st", r"\[sp|\[x29", r"\b[qsdv]\d+")
_SMALL = {"Cortex-A55": "cortex-a55", "Cortex-A76": "neoverse-n1"}
_LARGE = {"Neoverse N2": "neoverse-n2", "Neoverse V1": "neoverse-v1"}
ISAS = {
    "neon": Isa(r"fmla\t", *_AARCH64, {"Cortex-A72": "cortex-a72", **_SMALL, **_LARGE}),
    "neondot": Isa(r"sdot\t", *_AARCH64, _SMALL, "int8", 4),
    "neoni8mm": Isa(r"sudot\t", *_AARCH64, _LARGE, "int8", 4),
    "neonbf16": Isa(r"bfdot\t", *_AARCH64, _LARGE, "bfloat16", 2),
    # A load of four lanes fills two registers of two: {d0, d1}, or {d0[], d1[]} from one number.
    "armv7": Isa(r"vfma\.f32\tq", r"v?ld", r"v?st", r"\bsp\b", r"\{d\d+|\bs\d+", {}),
    "rv64gcv": Isa(
        r"vfmacc\.v[fv]",
        r"(f?l[dwh]|vle32\.v)\b",
        r"(f?s[dwh]|vse32\.v)\b",
        r"\(sp\)",
        r"\bf[ast]\d+|\bv\d+",
        {},
    ),
}
ROWS, DEPTH, CHANNELS = 96, 256, 64
#: Multiply-adds that a core begins in a cycle.
PEAKS = {"Cortex-A55": 1, "Cortex-A72": 1, "Cortex-A76": 2, "Neoverse N2": 2, "Neoverse V1": 4}
PATTERNS = {
    "dense": DENSE,
    "2:4x32": Pattern(2, 4, 32),
    "1:4x32": Pattern(1, 4, 32),
    "2:4x16": Pattern(2, 4, 16),
    "2:4x4": Pattern(2, 4, 4),
    "2:4": Pattern(2, 4),
    "1:4": Pattern(1, 4),
}


def cases(precision: str = "float32") -> dict[str, object]:
    """Name -> spec: products with every pattern that has products of this precision, and a convolution."""
    made: dict[str, object] = {
        f"gemm {name}": Gemm((ROWS,), DEPTH, CHANNELS, pattern, precision=precision)
        for name, pattern in PATTERNS.items()
        if precision == "float32" or pattern.dense or pattern.block >= PANEL
    }
    for name in ("dense", "2:4x16"):
        made[f"conv 3x3 {name}"] = conv(
            *(1, 14, 14, CHANNELS, CHANNELS, 3, 3),
            pads=(1, 1, 1, 1),
            pattern=PATTERNS[name],
            precision=precision,
        )
    return made


def inner_loop(cpu: Cpu, spec) -> list[str]:
    """The instructions of the innermost loop with most multiply-adds; empty where there is none."""
    isa = ISAS[cpu.name]
    func = packed_for(spec, cpu.permute).prim_func().with_attr("global_symbol", "kernel")
    text = build_library(tvm.IRModule({"kernel": func}), cpu).library.inspect_source("asm")
    best: list[str] = []
    body: list[str] = []
    label = None
    for line in text.splitlines():
        if found := re.match(r"(\.L\w+):", line):
            label, body = found[1], []
        elif re.match(r"\t[a-z]", line) and label:
            body.append(line.strip())
            jumps = re.match(r"\t[ct]?b\S*\s.*?(\.L\w+)", line)
            if (
                jumps
                and jumps[1] == label
                and _count(body, isa.multiply_add) > _count(best, isa.multiply_add)
            ):
                best = list(body)
    return best


def row(level: str, name: str, spec) -> dict:
    """What the loop of one kernel holds.

    ``per_lane``: values of the layer, zeros included, for each lane of a multiply-add; 0 for strips.

    ``loads`` counts registers, vectors and scalars alike, so a pair counts two; positions are not counted.
    ``best`` is what the best tile would have that the registers hold, see ``best_ratio``.
    """
    cpu, isa = LEVELS[level], ISAS[level]
    loop = inner_loop(cpu, spec)
    products = _count(loop, isa.multiply_add)
    loads = sum(len(re.findall(isa.filled, line)) for line in loop if re.match(isa.load, line))
    return {
        "level": level,
        "kernel": name,
        "multiply_adds": products,
        "loads": loads,
        "ratio": products / max(loads, 1),
        "best": best_ratio(cpu, spec.kind.together(cpu)),
        "instructions": len(loop),
        "spilled": sum(bool(re.search(isa.stack, line)) for line in loop) + _count(loop, isa.store),
        "cycles": {core: cycles(loop, cpu, mca) for core, mca in isa.cores.items()},
        "per_lane": isa.group * DEPTH / spec.packed.kept(DEPTH) if spec.strips is None else 0,
    }


def best_ratio(cpu: Cpu, together: int = 1) -> float:
    """The most multiply-adds for each register loaded, of all tiles of rows by vectors of channels.

    A step of ``r`` rows and ``v`` vectors loads r + v values for r * v products; beside their sums the
    registers hold the fewer of the two and one of the others.  Where a row's values are loaded ``together``,
    they stay for as many steps, and registers hold those of every row.
    """
    tiles = [
        (r, v)
        for r in range(1, cpu.registers)
        for v in range(1, cpu.registers)
        if r * v + (min(r, v) if together == 1 else r) + 1 <= cpu.registers
    ]
    return max(r * v / (r / together + v) for r, v in tiles)


def _count(lines: list[str], pattern: str) -> int:
    return sum(bool(re.match(pattern, line)) for line in lines)


def cycles(loop: list[str], cpu: Cpu, core: str) -> float | None:
    """Cycles of one iteration as llvm-mca simulates ``core``; None without llvm-mca."""
    simulator = next(filter(None, map(shutil.which, SIMULATORS)), None)
    if not loop or simulator is None:
        return None
    command = [simulator, f"-mtriple={cpu.triple}", f"-mcpu={core}", f"-iterations={ROUNDS}"]
    done = subprocess.run(
        [*command, f"-mattr={','.join(cpu.features)}", "-instruction-info=false", "-resource-pressure=false"],
        input="\n".join(loop) + "\n",
        capture_output=True,
        text=True,
    )
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(found[1]) / ROUNDS if found else None


HEADER = (
    "level",
    "kernel",
    "multiply-adds",
    "loaded",
    "per load",
    "best tile",
    "instructions",
    "spilled",
    "cycles",
)
ABOUT = f"""# Inner loops, counted

Written by `python -m benchmarks loops`; nothing was run.  {ROWS} rows, {DEPTH} channels to {CHANNELS}, and
14x14 pixels for the convolution.  Multiply-adds are instructions of four lanes, "loaded" are the registers
that an iteration loads, "best tile" is the most multiply-adds per load of any tile that the level's registers
hold, "spilled" are stores and accesses to the stack.  Cycles of an iteration are llvm-mca's, with all memory
in the first-level cache.  Levels of lower precision multiply two or four values a lane, neondot and neoni8mm
int8, neonbf16 bfloat16.  Cortex-A76 is simulated as Neoverse N1, its twin.
"""
RATES = """
## Rates

Of the multiply-adds that a core can begin (one in a cycle on Cortex-A55 and A72, two on A76 and Neoverse N2,
four on V1); and how fast a layer is beside the dense one in float32 on that core, zeros counted as work.
"""


def table(rows: list[dict]) -> list[str]:
    lines = [f"| {' | '.join(HEADER)} |", "|---|---|" + "---:|" * 6 + "---|"]
    for r in rows:
        times = ", ".join(f"{core} {t:.1f}" for core, t in r["cycles"].items() if t)
        cells = [
            r["level"],
            r["kernel"],
            r["multiply_adds"],
            r["loads"],
            f"{r['ratio']:.2f}",
            f"{r['best']:.2f}",
        ]
        lines.append("| " + " | ".join(map(str, [*cells, r["instructions"], r["spilled"], times])) + " |")
    return lines


def rates(rows: list[dict]) -> list[str]:
    """For kernels whose channels share their zeros, on every core that was simulated."""
    found = {
        (core, r["level"], r["kernel"]): r["multiply_adds"] / t
        for r in rows
        for core, t in r["cycles"].items()
        if t and r["per_lane"]
    }
    lines = ["| core | level | kernel | of its peak | over float32 |", "|---|---|---|---:|---:|"]
    worth = {(r["level"], r["kernel"]): r["per_lane"] for r in rows}
    for (core, level, kernel), rate in sorted(
        found.items(), key=lambda f: (f[0][0], list(ISAS).index(f[0][1]))
    ):
        shape = kernel.rpartition(" ")[0]
        speed = rate * worth[level, kernel] / found[core, "neon", f"{shape} dense"]
        lines.append(f"| {core} | {level} | {kernel} | {rate / PEAKS[core]:.0%} | {speed:.2f}x |")
    return lines


def write(_asked) -> None:
    """``benchmarks/results/loops.md``."""
    rows = [row(level, name, spec) for level in ISAS for name, spec in cases(ISAS[level].precision).items()]
    text = "\n".join([ABOUT, *table(rows), RATES, *rates(rows)]) + "\n"
    (FOLDER / "loops.md").write_text(text)
    print(text)
