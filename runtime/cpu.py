"""CPU features by name: what a library needs, and what this machine has.

The names are LLVM's, and the x86 levels are those of the x86-64 psABI (section "Micro-Architecture
Levels"); ``v3vnni``, ``v4vnni`` and ``v4bf16`` are v3 and v4 with products of narrow numbers.  ``neon`` is
Armv8-A with Advanced SIMD and ``rv64gc`` the scalar profile of the RISC-V distributions, which every Linux of
their architecture has, so they need no feature by name; ``neondot``, ``neoni8mm`` and ``neonbf16`` are neon
with products of narrow numbers (Armv8.2, Armv8.6); ``armv7`` is a 32-bit Arm core with fused
multiply-add in NEON (Cortex-A7, A15 and later), ``rv64gcv`` has RISC-V's vector extension 1.0.
Linux lists a feature only when the kernel also saves its registers, so nothing more has to be asked.
"""

import ctypes
import platform
import sys

from .errors import TargetError

V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
V3 = (*V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
V4 = (*V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
V3_VNNI = (*V3, "avxvnni")
V4_VNNI = (*V4, "avx512vnni")
V4_BF16 = (*V4_VNNI, "avx512bf16")

# level -> the features that its code may use
LEVEL_FEATURES = {
    "v2": V2,
    "v3": V3,
    "v3vnni": V3_VNNI,
    "v4": V4,
    "v4vnni": V4_VNNI,
    "v4bf16": V4_BF16,
    "neon": (),
    "neondot": ("dotprod",),
    "neoni8mm": ("dotprod", "i8mm"),
    "neonbf16": ("dotprod", "i8mm", "bf16"),
    "armv7": ("neon", "vfp4"),
    "rv64gc": (),
    "rv64gcv": ("v",),
}
# level -> the architecture it belongs to, as the manifest spells it; worse levels come first
LEVEL_ARCHITECTURE = {
    "v2": "x86_64",
    "v3": "x86_64",
    "v3vnni": "x86_64",
    "v4": "x86_64",
    "v4vnni": "x86_64",
    "v4bf16": "x86_64",
    "neon": "aarch64",
    "neondot": "aarch64",
    "neoni8mm": "aarch64",
    "neonbf16": "aarch64",
    "armv7": "armv7",
    "rv64gc": "riscv64",
    "rv64gcv": "riscv64",
}

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
_AT_HWCAP, _AT_HWCAP2 = 16, 26
# architecture -> LLVM's name -> bits and the one of them, for those whose features the kernel hands to every
# process
_HWCAP = {
    "aarch64": {"dotprod": (_AT_HWCAP, 20), "i8mm": (_AT_HWCAP2, 13), "bf16": (_AT_HWCAP2, 14)},
    "armv7": {"neon": (_AT_HWCAP, 12), "vfp4": (_AT_HWCAP, 16)},
    "riscv64": {"v": (_AT_HWCAP, ord("v") - ord("a"))},
}


def architecture() -> str:
    """This process's architecture as the manifest spells it, for example ``x86_64``."""
    machine = platform.machine()
    if machine.startswith("armv") or (machine == "aarch64" and sys.maxsize < 1 << 32):
        return "armv7"
    return machine


def levels() -> tuple[str, ...]:
    """The levels that this machine runs, best first."""
    offered = features()
    runs = [level for level, needed in LEVEL_FEATURES.items() if offered.issuperset(needed)]
    return tuple(level for level in reversed(runs) if LEVEL_ARCHITECTURE[level] == architecture())


def features() -> frozenset[str]:
    """The known features that this CPU and its kernel offer; empty where the architecture has none to name.

    Raises TargetError if /proc is not there to be asked on x86.
    """
    if architecture() != "x86_64":
        auxiliary = ctypes.CDLL(None).getauxval
        auxiliary.argtypes, auxiliary.restype = [ctypes.c_ulong], ctypes.c_ulong
        known = _HWCAP.get(architecture(), {}).items()
        return frozenset(f for f, (bits, bit) in known if auxiliary(bits) >> bit & 1)
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
