"""Schedules for GPUs: one rule per kernel kind, tried in order; the last one takes whatever is left."""

import tvm
from tvm import tirx

from sparsec.schedules import RULE
from sparsec.schedules.cuda import (
    attention_kernel,
    contraction_kernel,
    depthwise_kernel,
    library,
    recurrent,
    rows,
    tensor_kernel,
    threads,
    top_k,
    vector_kernel,
)
from sparsec.schedules.cuda.target import Gpu

#: ``rule(func, gpu)`` gives the function scheduled, or None where it is not for it.
RULES = (
    ("recurrent", recurrent.rule),
    ("attention", attention_kernel.rule),
    ("tensor_gemm", tensor_kernel.rule),
    ("vector", vector_kernel.rule),
    ("contraction", contraction_kernel.rule),
    ("depthwise", depthwise_kernel.rule),
    ("row", rows.rule),
    ("top_k", top_k.rule),
    ("threads", threads.rule),
    ("matmul", library.matmul),
    ("reduction", library.reduction),
    ("rows", library.rows),
    ("transpose", library.transpose),
    ("fallback", library.fallback),
)


def schedule(mod: tvm.IRModule, gpu: Gpu) -> tvm.IRModule:
    """``mod`` with every PrimFunc scheduled for ``gpu`` and annotated with the name of the rule that took it.

    Raises ValueError where no rule takes one: nothing runs anywhere else.
    """
    done = {gv.name_hint: _schedule_one(gv.name_hint, func, gpu) for gv, func in mod.functions.items()}
    return tvm.IRModule(done, attrs=mod.attrs)


def _schedule_one(name: str, func: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc:
    for rule_name, rule in RULES:
        scheduled = rule(func, gpu)
        if scheduled is not None:
            return scheduled.with_attr(RULE, rule_name)
    raise ValueError(f"no rule makes a kernel of {name!r}")
