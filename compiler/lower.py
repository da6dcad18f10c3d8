"""Relax graph to TIR kernels: legalise, fuse, and nothing hidden.

``reshape`` and its relatives stay Relax operators: they move no bytes, and the planner turns them into
aliases of the same memory.
"""

import tvm
from tvm import relax, tirx

from sparsec.schedules import tir

ALIASES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")


def _as_reshape(_: relax.BlockBuilder, call):
    return relax.op.reshape(call.args[0], call.ty.shape)


@tvm.transform.module_pass(opt_level=0)
def _annotate_elementwise(mod: tvm.IRModule, _context) -> tvm.IRModule:
    """What calls itself elementwise is so for FuseOps, too."""
    for name, func in mod.functions.items():
        if isinstance(func, tirx.PrimFunc) and tir.ELEMENTWISE in func.attrs:
            mod[name] = func.with_attr(tir.OP_PATTERN, tir.KIND_ELEMENTWISE)
    return mod


def lower(mod: tvm.IRModule) -> tvm.IRModule:
    """A module whose ``main`` calls PrimFuncs (fused, unscheduled) and aliases, and nothing else."""
    passes = [
        relax.transform.DeadCodeElimination(),
        relax.transform.LegalizeOps(dict.fromkeys(ALIASES[1:], _as_reshape), skip_ops=[ALIASES[0]]),
        relax.transform.AnnotateTIROpPattern(),
        _annotate_elementwise,
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    with tvm.transform.PassContext(opt_level=3):
        return tvm.ir.transform.Sequential(passes)(mod)
