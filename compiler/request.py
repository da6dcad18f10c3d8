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
    "arm:dot": ("neondot",),
    "arm:i8mm": ("neoni8mm",),
    "arm:bf16": ("neonbf16",),
    "armv7": ("armv7",),
    "riscv64": ("rv64gc",),
    "riscv64:rvv": ("rv64gcv",),
}
GPUS = ("sm_80", "sm_87", "sm_89", "sm_90")
"""What ``cuda`` means, oldest first; ``cuda:sm_87`` is one of them."""
SPARSITY = ("auto", "require", "off")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "int8-weights", "int4-weights")
CPU_PRECISIONS = ("fp32", "bf16", "int8", "int8-weights", "int4-weights")
#: Those among which each layer gets one, or stays float32, where several are named with commas.
MIXED = ("bf16", "int8")
#: What rounds the weights where that is all of a precision.
WEIGHT_PASSES = {"int8-weights": "quantise-weights{bits=8}", "int4-weights": "quantise-weights{bits=4}"}
#: Levels that only artifacts of a lower precision have, those with instructions for it.
LOW_PRECISION = {
    "bf16": ("v4bf16", "neonbf16"),
    **dict.fromkeys(("int8", *WEIGHT_PASSES), ("v4vnni", "v3vnni", "neoni8mm", "neondot")),
}
#: Targets to which they are added, those of everything that an architecture's CPUs may have.
GENERAL = ("x86", "arm")


@dataclass(frozen=True)
class CompileRequest:
    """One compilation.

    ``target``: ``x86`` (levels v3 and v4 in one file), ``x86:v2``, ``x86:v3``, ``x86:v4``, ``arm`` (aarch64
    with NEON), ``arm:dot``, ``arm:i8mm`` and ``arm:bf16`` (with products of int8, of int8 by uint8, of
    bfloat16), ``armv7`` (32-bit with NEON), ``riscv64`` (scalar), ``riscv64:rvv`` (vectors), ``native`` (the
    best level of this machine), or several of them with commas between, in one file; ``cuda`` is the GPU
    architectures ``GPUS`` in one file, ``cuda:sm_87`` one of them.  ``passes``: the
    pipeline's text.  ``shapes``: input name to full shape, ``dims``: symbolic dim to size.  ``sparsity``:
    ``auto`` takes the faster kernel of each layer, ``require`` fails where that is the dense one, ``off``
    ignores patterns.  ``precision``: ``bf16`` lets layers compute in bfloat16, see ``precision.py``; GPUs
    have ``fp16`` and ``tf32`` as well, see ``cuda/choices.py``; ``int8`` quantises layers on ``calib``, see
    ``quantize.py``; ``int8-weights`` and ``int4-weights`` round weights alone, see ``pipeline``; with
    ``calib`` see ``weight_quant.py``.
    Several of ``MIXED``, a budget or ``patterns`` have each layer get the form that the budget allows, see
    ``mixed``: ``max_error`` and ``max_drop`` (of ``metric``) on held-out samples of ``calib``,
    ``target_latency`` relative to the model in float32.  ``bfloat16``: where that is settled, the layers that
    compute in bfloat16.
    ``calib``: an npz whose arrays, by input name, replace the seeded random inputs of
    the check.  ``choices``: a JSON file of kernel choices to replay.  ``states``: inputs that an output feeds
    in the next run, input -> output, names or patterns as in ``compiler/states.py``.  ``variants``: the
    patterns in each of which the file has the network, see ``compiler/variants.py``.
    ``exportable``: whether the artifact keeps what ``compiler/export`` makes device folders and programs of.
    ``keep_source``: put the CUDA C of GPU kernels into the artifact.
    """

    model: str
    out: str
    target: str = "x86"
    passes: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    sparsity: str = "auto"
    precision: str = "fp32"
    patterns: tuple[str, ...] = ()
    max_error: float | None = None
    max_drop: float | None = None
    metric: str | None = None
    target_latency: float | None = None
    bfloat16: tuple[str, ...] | None = None
    calib: str | None = None
    choices: str | None = None
    states: dict[str, str] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    verify: bool = True
    dump_dir: str | None = None
    exportable: bool = False
    keep_source: bool = False

    def __post_init__(self):
        if self.sparsity not in SPARSITY:
            raise CompileError(f"sparsity must be one of {', '.join(SPARSITY)}, found '{self.sparsity}'")
        parts = self.precision.split(",")
        if self.precision not in PRECISIONS and sorted(parts) != sorted(MIXED):
            raise CompileError(
                f"precision must be one of {', '.join(PRECISIONS)}, or '{','.join(MIXED)}', of which each "
                f"layer gets one or stays fp32; found '{self.precision}'"
            )
        if gpu_names(self.target):
            self._check_gpu()
        elif not {*parts} <= {*CPU_PRECISIONS}:
            raise CompileError(
                f"--precision {self.precision} is for GPUs; choose of {', '.join(CPU_PRECISIONS)} "
                f"for '{self.target}'"
            )
        elif "int8" in parts and not self.calib and not self.settled:
            raise CompileError(
                f"--precision {self.precision} needs --calib DATA.npz, real inputs to quantise on; "
                "a model that is quantised already is compiled without it"
            )
        if self.allocates:
            self._check_allocation()
        if self.variants:
            self._check_variants()

    def _check_allocation(self):
        if not {*self.precision.split(",")} <= {*MIXED}:
            raise CompileError(
                f"a budget or --pattern chooses among precisions: --precision {','.join(MIXED)} or one of "
                f"them is required, found {self.precision}; `sparsec sparsify --pattern` prunes alone"
            )
        if not self.calib:
            raise CompileError("a budget needs --calib DATA.npz, real inputs to measure errors on")
        for option, given in (("--variants", self.variants), ("--choices", self.choices)):
            if given:
                raise CompileError(f"{option} does not go with a choice of precisions for each layer")

    def _check_gpu(self):
        for option, given in (
            (f"--precision {self.precision}", {*self.precision.split(",")} & {"int8", *WEIGHT_PASSES}),
            ("--pattern and budgets", self.allocates),
        ):
            if given:
                raise CompileError(f"{option} is for CPUs; compile for '{self.target}' without it")

    def _check_variants(self):
        from sparsec.passes.nm_pattern import NM  # here, so that the command line starts without onnx_ir

        if len(self.variants) < 2 or len(set(map(NM.parse, self.variants))) < len(self.variants):
            found = ", ".join(self.variants)
            raise CompileError(f"--variants: two patterns or more are required, each once; found {found}")
        others = {"--choices": self.choices, "--exportable": self.exportable}
        if option := next((name for name, given in others.items() if given), None):
            raise CompileError(f"--variants with {option}: one network is required; compile it by itself")

    @property
    def settled(self) -> bool:
        """Whether each layer has got its precision."""
        return self.bfloat16 is not None

    @property
    def allocates(self) -> bool:
        """Whether a form must be chosen for each layer."""
        budget = (self.max_error, self.max_drop, self.metric, self.target_latency)
        asked = "," in self.precision or self.patterns or any(limit is not None for limit in budget)
        return bool(asked) and not self.settled

    @property
    def floats(self) -> str:
        """The precision of layers that multiply floats."""
        if self.settled:
            return "bf16" if self.bfloat16 else "fp32"
        return self.precision

    @property
    def pipeline(self) -> str:
        """``passes``, and behind them the one that ``precision`` stands for."""
        return ",".join(filter(None, [self.passes, WEIGHT_PASSES.get(self.precision)]))

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "CompileRequest":
        shapes = {name: tuple(shape) for name, shape in data.get("shapes", {}).items()}
        lists = {key: tuple(data.get(key, ())) for key in ("variants", "patterns")}
        settled = data.get("bfloat16")
        return cls(
            **{**data, **lists, "shapes": shapes, "bfloat16": None if settled is None else tuple(settled)}
        )


def cpu_levels(target: str, precision: str = "fp32") -> tuple[str, ...]:
    """The CPU levels of ``target``, each once: by architecture as they are named, then best first.

    A ``precision`` below fp32 adds the levels that have instructions for it to ``GENERAL`` and ``native``.
    """
    levels: list[str] = []
    for name in target.split(","):
        if name not in TARGETS and name != "native":
            known = ", ".join([*TARGETS, "native"])
            raise CompileError(f"unknown target '{name}'; choose of {known}, several with commas between")
        levels += (native_level(precision),) if name == "native" else TARGETS[name]
        if name in GENERAL:
            machine = cpu.LEVEL_ARCHITECTURE[TARGETS[name][0]]
            levels += (v for v in low_levels(precision) if cpu.LEVEL_ARCHITECTURE[v] == machine)
    machines = list(dict.fromkeys(cpu.LEVEL_ARCHITECTURE[level] for level in levels))
    worst_first = list(cpu.LEVEL_FEATURES)
    key = lambda v: (machines.index(cpu.LEVEL_ARCHITECTURE[v]), -worst_first.index(v))  # noqa: E731
    return tuple(sorted(set(levels), key=key))


def low_levels(precision: str) -> tuple[str, ...]:
    """The levels that only artifacts of ``precision``, or of one of several, have."""
    return tuple(level for part in precision.split(",") for level in LOW_PRECISION.get(part, ()))


def gpu_names(target: str) -> tuple[str, ...]:
    """The GPU architectures of ``target``, oldest first; none for CPUs.

    Raises CompileError for one that is not known, and for GPUs and CPUs in one file.
    """
    parts = target.split(",")
    wanted: set[str] = set()
    for part in parts:
        kind, _, name = part.partition(":")
        if kind != "cuda":
            continue
        if name and name not in GPUS:
            known = ", ".join(f"cuda:{known}" for known in GPUS)
            raise CompileError(
                f"unknown GPU architecture '{name}' in target '{target}'; choose of cuda, {known}"
            )
        wanted |= {name} if name else set(GPUS)
    if wanted and not all(part.partition(":")[0] == "cuda" for part in parts):
        raise CompileError(f"target '{target}': GPUs and CPUs do not go into one file; compile twice")
    return tuple(name for name in GPUS if name in wanted)


def runnable(levels: Iterable[str]) -> list[str]:
    """Those of ``levels`` that this machine runs."""
    here = cpu.levels()
    return [level for level in levels if level in here]


def native_level(precision: str = "fp32") -> str:
    """The best level that this machine runs at ``precision``."""
    own = low_levels(precision)
    others = {level for levels in LOW_PRECISION.values() for level in levels if level not in own}
    runs = [level for level in cpu.levels() if level not in others]
    if not runs:
        raise CompileError(
            f"target 'native': this machine's CPU ({cpu.architecture()}) runs no level; name a target"
        )
    return runs[0]
