"""What a schedule must know of a GPU: one record per architecture, each number with its reason."""

from dataclasses import dataclass

from tvm.target import Target


@dataclass(frozen=True)
class Architecture:
    """An NVIDIA architecture: ``shared`` is what one block may have of a multiprocessor's memory, in bytes.

    (CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".)  The rest is what
    kernels are ranked by, of one usual device: its multiprocessors, multiply-adds a second of float32 and of
    16 bits on tensor cores, bytes a second of its memory (data sheets of A100, Jetson AGX Orin, L4, H100).
    """

    name: str
    shared: int
    multiprocessors: int
    fp32: float
    tensor: float
    bandwidth: float


#: The portable set, oldest first: A100, Jetson Orin, Ada (L4, RTX 40), Hopper.
ARCHITECTURES = {
    arch.name: arch
    for arch in (
        Architecture("sm_80", 163 * 1024, 108, 9.7e12, 156e12, 1.55e12),
        Architecture("sm_87", 163 * 1024, 16, 2.6e12, 21e12, 0.2e12),
        Architecture("sm_89", 99 * 1024, 58, 15e12, 60e12, 0.3e12),
        Architecture("sm_90", 227 * 1024, 132, 33e12, 310e12, 3.35e12),
    )
}

#: Threads of a block of the simple rules: eight warps hide latency, and leave 255 registers to each thread.
THREADS = 256

#: Threads that run in step; a row with fewer elements leaves some of them idle.
WARP = 32

#: Bytes of shared memory that a kernel may have without asking the driver for more.
STATIC_SHARED = 48 * 1024


@dataclass(frozen=True)
class Gpu:
    """The architectures that one set of kernels is made for, oldest first.

    The kernels are the same for all: the source uses what the oldest has, and the limits are the least.
    """

    names: tuple[str, ...] = tuple(ARCHITECTURES)

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory that a block may have on each of them."""
        return min(ARCHITECTURES[name].shared for name in self.names)

    @property
    def oldest(self) -> Architecture:
        """The one that kernels are ranked for."""
        return ARCHITECTURES[self.names[0]]

    def tvm_target(self) -> Target:
        # dlight takes max_threads_per_block for the blocks of its simple rules.
        return Target({"kind": "cuda", "arch": self.names[0], "max_threads_per_block": THREADS})
