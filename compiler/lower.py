"""Relax graph to TIR kernels: legalise, fuse, and nothing hidden.

``reshape`` and its relatives stay Relax operators: they move no bytes, and the planner turns them into
aliases of the same memory.
"""

import tvm
from tvm import relax

ALIASES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")


def _as_reshape(_: relax.BlockBuilder, call):
    return relax.op.reshape(call.args[0], call.ty.shape)


def lower(mod: tvm.IRModule) -> tvm.IRModule:
    """A module whose ``main`` calls PrimFuncs (fused, unscheduled) and aliases, and nothing else."""
    passes = [
        relax.transform.DeadCodeElimination(),
        relax.transform.LegalizeOps(dict.fromkeys(ALIASES[1:], _as_reshape), skip_ops=[ALIASES[0]]),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    with tvm.transform.PassContext(opt_level=3):
        return tvm.ir.transform.Sequential(passes)(mod)
