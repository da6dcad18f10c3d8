"""LSTM, GRU and RNN on a GPU: a block for each sequence, its threads over the hidden units.

A sequence depends on no other one, so the barrier between two steps in time is the block's own.  Neighbouring
threads read neighbouring columns of the recurrence weight, and each computes all gates of its units.
"""

import json
from collections.abc import Callable

from tvm import tirx
from tvm.ir import StringImm

from sparsec.schedules import recurrent, rows, tir
from sparsec.schedules.cuda.target import Gpu
from sparsec.schedules.cuda.threads import in_registers, launch
from sparsec.schedules.recurrent import Recurrent

_THREADS = 512
"""The most threads of a block: each has its accumulators, and 128 registers for them."""


def rule(func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc | None:
    """One kernel for all steps in time; None for other functions."""
    if not rows.is_op(func, "recurrent"):
        return None
    spec = Recurrent(**json.loads(str(func.attrs[recurrent.SPEC])))
    body = _Kernel(spec, list(func.params)).body()
    return tirx.PrimFunc(func.params, in_registers(body), func.ret_type, func.attrs)


class _Kernel(recurrent.Kernel):
    """The kernel of one lane and one sequence, its loops over units spread over the threads of a block."""

    def __init__(self, spec: Recurrent, params: list):
        super().__init__(spec, params, lanes=1, tile=1)
        self.threads = min(_THREADS, spec.hidden)

    def body(self) -> tir.Stmt:
        def sequence(block, thread):
            self.thread = thread
            return self.run(block, 1)

        return launch(self.spec.batch, self.threads, sequence)

    def each_unit(self, body: Callable) -> tir.Stmt:
        """``body(unit, unit)`` for the thread's units; then all threads see what all have written."""
        hidden = self.spec.hidden

        def step(round_):
            unit = round_ * tir.i64(self.threads) + self.thread
            whole = hidden % self.threads == 0
            return (
                body(unit, unit) if whole else tirx.IfThenElse(unit < tir.i64(hidden), body(unit, unit), None)
            )

        barrier = tirx.call_intrin("int32", "tirx.tvm_storage_sync", StringImm("shared"))
        return tir.seq([tir.loop("j", -(-hidden // self.threads), step), tirx.Evaluate(barrier)])
