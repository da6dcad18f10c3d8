"""CPU features by name: what a library needs, and what this machine has.

The names are LLVM's, and the x86 levels are those of the x86-64 psABI (section "Micro-Architecture
Levels").  The others are what every Linux of their architecture runs on, so they need no feature by name:
``neon`` is Armv8-A with Advanced SIMD, ``rv64gc`` the scalar profile of the RISC-V distributions.  Linux
lists a feature in ``/proc/cpuinfo`` only when the kernel also saves its registers, so nothing more has to
be asked.
"""

import platform

from .errors import TargetError

V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
V3 = (*V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
V4 = (*V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")

# level -> the features that its code may use
LEVEL_FEATURES = {"v2": V2, "v3": V3, "v4": V4, "neon": (), "rv64gc": ()}
# level -> the architecture it belongs to, as the manifest spells it
LEVEL_ARCHITECTURE = {"v2": "x86_64", "v3": "x86_64", "v4": "x86_64", "neon": "aarch64", "rv64gc": "riscv64"}

# LLVM's name -> Linux's name, where they differ
_LINUX = {
    "bmi": "bmi1",
    "lzcnt": "abm",
    "sahf": "lahf_lm",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "avx512bf16": "avx512_bf16",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
}
KNOWN_FEATURES = frozenset(V4) | {"avx512bf16", "avx512vnni", "avxvnni"}


def architecture() -> str:
    """This machine's architecture as the manifest spells it, for example ``x86_64``."""
    return platform.machine()


def levels() -> tuple[str, ...]:
    """The levels that this machine runs, best first."""
    offered = features()
    runs = [level for level, needed in LEVEL_FEATURES.items() if offered.issuperset(needed)]
    return tuple(level for level in reversed(runs) if LEVEL_ARCHITECTURE[level] == architecture())


def features() -> frozenset[str]:
    """The known features that this CPU and its kernel offer; empty on other architectures.

    Raises TargetError if /proc is not there to be asked.
    """
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            head = file.read(16384).decode("ascii", "replace")  # the first processor is enough
    except OSError as e:
        raise TargetError(
            f"cannot tell what this CPU can do: /proc/cpuinfo: {e.strerror}; mount /proc"
        ) from e
    for line in head.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            flags = set(value.split())
            return frozenset(f for f in KNOWN_FEATURES if _LINUX.get(f, f) in flags)
    return frozenset()
