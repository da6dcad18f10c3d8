"""bfloat16 with few or short registers and no products of it: the activations as float32.

To take words of activations and weights apart for each product costs a fifth of the time with 16
registers: halves of both leave room for fewer sums, and shifts take turns with multiply-adds; with
vectors of four lanes shifts are as many as multiply-adds of a row.  So the activations are widened before
the first task.  A tile is cut as one of float32 and takes the lower halves of all weights, then the upper
ones; one shift for each vector of weights is hidden beside its multiply-adds.
"""

import math

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.elements import BFLOAT16, Element, pair_products, widened
from sparsec.schedules.target import Cpu
from sparsec.schedules.vector import PARALLEL_WORK, Steps, power_below

#: Rows from which that pays.
FEWEST_ROWS = 4
#: Activations that one task widens.
TASK = 1 << 13


def pays(cpu: Cpu, form: str, element: Element, rows: int) -> bool:
    """Whether the product of ``rows`` rows with a weight in ``form`` reads widened activations on ``cpu``."""
    words = element is BFLOAT16 and not pair_products(cpu) and form in ("dense", "shared")
    return words and (cpu.registers <= 16 or cpu.lanes <= 4) and rows >= FEWEST_ROWS


def activations(cpu: Cpu, x: tir.Buffer) -> tuple[tir.Buffer, list[tir.Stmt]]:
    """``x`` as float32, and the statements that make it."""
    *lead, channels = shape = tir.shape_of(x)
    copy, rows = tir.scratch("wide", *shape), math.prod(lead)
    steps = Steps(channels, min(cpu.lanes, power_below(channels)))

    def row(r):
        at = tir.unflatten(r, tuple(lead))

        def step(s):
            index = *at, steps.start(s)
            value = widened(tir.vector_load(x, *index, lanes=steps.width), steps.width)
            return tir.vector_store(copy, value, *index, lanes=steps.width)

        return tir.loop("s", steps.count, step)

    share = -(-TASK // channels)

    def task(t):
        return tir.loop("r", tirx.min(tir.i64(share), tir.i64(rows) - t * share), row, start=t * share)

    kind = "PARALLEL" if rows * channels >= PARALLEL_WORK else "SERIAL"
    return copy, [*tir.alloc([copy]), tir.loop("task", -(-rows // share), task, kind)]
