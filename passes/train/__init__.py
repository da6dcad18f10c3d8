"""Train a torch network to a pattern that pays when sparsec compiles it.

    findings = train.sparsify(student, "2:4x32", skip="head")     # masks on the weights, in one line
    train.refit(student, teacher, batches)                        # best masks and weights without training
    train.distil(student, teacher, batches, seconds=1200)         # then learn from the dense network
    train.export_onnx(student, inputs, "student.onnx")            # zeros that sparsec recognises, checked

The student is a copy of the dense teacher; batches are tuples of its inputs, without labels.  A training
loop of one's own takes the place of ``distil`` with a schedule of :mod:`.schedules` called before each step.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("sparsec.train needs torch: pip install 'sparsec[train]'") from error

from sparsec.passes.train.distillation import distil
from sparsec.passes.train.export import export_onnx
from sparsec.passes.train.least_squares import refit
from sparsec.passes.train.modules import finish, sparse_weights, sparsify
from sparsec.passes.train.schedules import Fixed, MaskDecay, Regrow, StructureDecay

__all__ = [
    "Fixed",
    "MaskDecay",
    "Regrow",
    "StructureDecay",
    "distil",
    "export_onnx",
    "finish",
    "refit",
    "sparse_weights",
    "sparsify",
]
