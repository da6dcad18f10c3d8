"""What a schedule must know of a machine: one record per target, each number with its reason."""

from dataclasses import dataclass, replace

from tvm.target import Target

#: float32 values of a cache line.
LINE = 16


@dataclass(frozen=True)
class Cpu:
    """A level of CPUs of one architecture.

    ``lanes`` counts fp32 values per register, ``registers`` the architectural vector registers.
    Cache sizes are the smallest of the machines of that level that are sold today, in bytes.
    ``run_cost``: half cycles that a tile loses for each row it writes where the output does not fit the
    second-level cache; measured, in steps of one 512-bit multiply-add for v4.
    ``features`` and ``abi`` are LLVM's, beside what ``mcpu`` says.
    """

    name: str
    mcpu: str
    lanes: int
    registers: int
    l1: int = 32 * 1024
    l2: int = 512 * 1024
    #: A tensor of this size is not expected to be in the last cache when it is read again: it is streamed.
    stream: int = 16 * 1024 * 1024
    run_cost: int = 0
    triple: str = "x86_64-unknown-linux-gnu"
    features: tuple[str, ...] = ()
    abi: str = ""
    float_abi: str = ""
    #: Whether one instruction picks any of 16 neighbouring activations for each lane.
    permute: bool = False
    #: The level whose instructions this one has, and a few more.
    base: str = ""

    def tvm_target(self) -> Target:
        given = {"mattr": list(self.features), "mabi": self.abi, "mfloat-abi": self.float_abi}
        options = {"kind": "llvm", "mcpu": self.mcpu, "mtriple": self.triple}
        return Target({**options, **{name: value for name, value in given.items() if value}})


_V3 = Cpu("v3", "x86-64-v3", lanes=8, registers=16, permute=True)
_V4 = Cpu("v4", "x86-64-v4", lanes=16, registers=32, run_cost=50, permute=True)

X86_LEVELS = {
    "v2": Cpu("v2", "x86-64-v2", lanes=4, registers=16),
    "v3": _V3,
    "v3vnni": replace(_V3, name="v3vnni", base="v3", features=("+avxvnni",)),
    "v4": _V4,
    "v4vnni": replace(_V4, name="v4vnni", base="v4", features=("+avx512vnni",)),
    # Every CPU that multiplies bfloat16 multiplies int8 as well.
    "v4bf16": replace(_V4, name="v4bf16", base="v4", features=("+avx512vnni", "+avx512bf16")),
}

# Armv8-A has no more than Advanced SIMD; the second-level cache is that of a small core's cluster.
_NEON = Cpu(
    "neon",
    "generic",
    lanes=4,
    registers=32,
    l2=256 * 1024,
    triple="aarch64-unknown-linux-gnu",
    features=("+neon",),
)
_NEON_DOT = replace(_NEON, name="neondot", base="neon", features=("+neon", "+dotprod"))
_NEON_I8MM = replace(_NEON_DOT, name="neoni8mm", features=(*_NEON_DOT.features, "+i8mm"))

AARCH64_LEVELS = {
    "neon": _NEON,
    "neondot": _NEON_DOT,
    "neoni8mm": _NEON_I8MM,
    # Armv8.6-A brings both: every CPU that multiplies bfloat16 multiplies int8 by uint8 as well.
    "neonbf16": replace(_NEON_I8MM, name="neonbf16", features=(*_NEON_I8MM.features, "+bf16")),
}

LEVELS = {
    **X86_LEVELS,
    **AARCH64_LEVELS,
    # NEON of 32-bit Arm takes subnormal numbers for zero, whatever one asks for.  It has 16 registers, of
    # which LLVM wants one more than a tile does: it loads the weights of a step ahead of its products.  For
    # the small cores that it knows by name it would not fuse multiply and add.
    "armv7": Cpu(
        "armv7",
        "generic",
        lanes=4,
        registers=15,
        l2=256 * 1024,
        triple="armv7-unknown-linux-gnueabihf",
        features=("+v7", "+neon", "+vfp4"),
        # TVM's default passes numbers to libm in integer registers, whatever the triple says.
        float_abi="hard",
    ),
    # Scalar: LLVM splits a vector of four into four registers, of which there are 32.
    "rv64gc": Cpu(
        "rv64gc",
        "generic-rv64",
        lanes=4,
        registers=8,
        l2=256 * 1024,
        triple="riscv64-unknown-linux-gnu",
        features=("+m", "+a", "+f", "+d", "+c"),
        abi="lp64d",
    ),
    # Vectors of 128 bits, the least that the vector extension of application cores has.
    "rv64gcv": Cpu(
        "rv64gcv",
        "generic-rv64",
        lanes=4,
        registers=32,
        l2=256 * 1024,
        triple="riscv64-unknown-linux-gnu",
        features=("+m", "+a", "+f", "+d", "+c", "+v"),
        abi="lp64d",
    ),
}
