"""Runs generated CUDA C on the CPU, exactly and with a watch on memory: `Emulated`.

Every CUDA thread is a fiber. Threads of a block run in one of `ORDERS`, which differ in who comes first
and in when asynchronous copies happen: a kernel that needs a barrier it does not have gives another
result in one of them. A *checked* emulation also looks at every access: outside of an array or a buffer,
misaligned, of shared memory that nobody has written, that a copy under way is about to write, or that
another thread has touched without a barrier in between. It is several times slower.

`library` makes the shared object alone; its C interface, in `emulator.h`, is what a fake driver calls.
"""

from cuda_emulator.build import library
from cuda_emulator.emulated import ORDERS, Emulated, EmulationError

__all__ = ["ORDERS", "Emulated", "EmulationError", "library"]
