"""What a schedule must know of a GPU: one record per architecture, each number with its reason."""

from dataclasses import dataclass

from tvm.target import Target


@dataclass(frozen=True)
class Architecture:
    """An NVIDIA architecture: ``shared`` is what one block may have of a multiprocessor's memory, in bytes.

    (CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".)
    """

    name: str
    shared: int


#: The portable set, oldest first: A100, Jetson Orin, Ada (L4, RTX 40), Hopper.
ARCHITECTURES = {
    arch.name: arch
    for arch in (
        Architecture("sm_80", 163 * 1024),
        Architecture("sm_87", 163 * 1024),
        Architecture("sm_89", 99 * 1024),
        Architecture("sm_90", 227 * 1024),
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

    def tvm_target(self) -> Target:
        # dlight takes max_threads_per_block for the blocks of its simple rules.
        return Target({"kind": "cuda", "arch": self.names[0], "max_threads_per_block": THREADS})
