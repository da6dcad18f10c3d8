"""What one compilation is asked for, as plain data that crosses a process border as JSON."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from sparsec.compiler.errors import CompileError
from sparsec.runtime import cpu

TARGETS = {
    "x86": ("v4", "v3"),
    "x86:v2": ("v2",),
    "x86:v3": ("v3",),
    "x86:v4": ("v4",),
    "arm": ("neon",),
    "riscv64": ("rv64gc",),
}
SPARSITY = ("auto", "require", "off")


@dataclass(frozen=True)
class CompileRequest:
    """One compilation.

    ``target``: ``x86`` (levels v3 and v4 in one file), ``x86:v2``, ``x86:v3``, ``x86:v4``, ``arm`` (aarch64
    with NEON), ``riscv64`` (scalar), or ``native`` (the best level of this machine).  ``passes``: the
    pipeline's text.  ``shapes``: input name to full shape, ``dims``: symbolic dim to size.  ``sparsity``:
    ``auto`` takes the faster kernel of each layer, ``require`` fails where that is the dense one, ``off``
    ignores patterns.  ``calib``: an npz whose arrays, by input name, replace the seeded random inputs of
    the check.  ``choices``: a JSON file of kernel choices to replay.  ``states``: inputs that an output feeds
    in the next run, input -> output, names or patterns as in ``compiler/states.py``.
    """

    model: str
    out: str
    target: str = "x86"
    passes: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    sparsity: str = "auto"
    calib: str | None = None
    choices: str | None = None
    states: dict[str, str] = field(default_factory=dict)
    verify: bool = True
    dump_dir: str | None = None

    def __post_init__(self):
        if self.sparsity not in SPARSITY:
            raise CompileError(f"sparsity must be one of {', '.join(SPARSITY)}, found '{self.sparsity}'")

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "CompileRequest":
        shapes = {name: tuple(shape) for name, shape in data.get("shapes", {}).items()}
        return cls(**{**data, "shapes": shapes})


def cpu_levels(target: str) -> tuple[str, ...]:
    """The CPU levels of ``target``, best first."""
    if target == "native":
        return (native_level(),)
    if target not in TARGETS:
        raise CompileError(f"unknown target '{target}'; choose one of {', '.join([*TARGETS, 'native'])}")
    return TARGETS[target]


def runnable(levels: Iterable[str]) -> list[str]:
    """Those of ``levels`` that this machine runs."""
    here = cpu.levels()
    return [level for level in levels if level in here]


def native_level() -> str:
    """The best level that this machine runs."""
    runs = cpu.levels()
    if not runs:
        raise CompileError(
            f"target 'native': this machine's CPU ({cpu.architecture()}) runs no level; name a target"
        )
    return runs[0]
