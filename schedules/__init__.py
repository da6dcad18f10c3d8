"""Schedules: what TIR a layer becomes on a target.

``schedule`` offers every PrimFunc of a module to the rules in order; the first that accepts it wins, and
``fallback`` takes whatever is left.  The name of the rule stays on the function as ``RULE``, so that
reports can say which kernel ran.  ``math.install()`` must have been called before the module is lowered.
"""

if __name__ != "sparsec.schedules":
    raise ImportError("import sparsec.schedules, not schedules: one file under two names gives two classes")

import tvm
from tvm import tirx

from sparsec.schedules import (
    attention_kernel,
    contraction_rule,
    elements,
    entmax_rows,
    fallback,
    hoist,
    layer_norm,
    pairs,
    recurrent,
    softmax,
    tir,
)
from sparsec.schedules.target import Cpu

RULE = "sparsec.rule"

#: ``(name, rule)``; a rule is ``rule(func, cpu) -> PrimFunc | None``, None where it does not apply.
RULES = (
    ("attention", attention_kernel.rule),
    ("softmax", softmax.rule),
    ("entmax", entmax_rows.rule),
    ("layer_norm", layer_norm.rule),
    ("recurrent", recurrent.rule),
    ("contraction", contraction_rule.rule),
    ("fallback", fallback.rule),
)


def schedule(mod: tvm.IRModule, cpu: Cpu) -> tvm.IRModule:
    """``mod`` with every PrimFunc scheduled for ``cpu`` and annotated with the name of the rule that took it.

    A function that no rule takes keeps its body and is marked ``"unscheduled"``; it is right, but scalar.
    Functions that are no PrimFuncs pass through.
    """
    done = {}
    for name, func in mod.functions.items():
        done[name] = _schedule_one(func, cpu) if isinstance(func, tirx.PrimFunc) else func
    return tvm.IRModule(done, attrs=mod.attrs)


def _schedule_one(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc:
    if func.attrs is not None and tir.SCHEDULED in func.attrs:
        return func.with_attr(RULE, "as written")
    for name, rule in RULES:
        scheduled = rule(func, cpu)
        if scheduled is not None:
            hoisted = hoist.hoist(scheduled, cpu.name)
            return pairs.imported(elements.imported(hoisted, cpu), cpu).with_attr(RULE, name)
    return func.with_attr(RULE, "unscheduled")
