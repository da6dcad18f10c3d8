"""Graph passes: recognise sparsity that is in a model, and insert it on request.

Recognisers always run and never change numbers; inserters run only when the pipeline text names them.
Every decision is a :class:`Finding`.
"""

if __name__ != "sparsec.passes":
    raise ImportError("import sparsec.passes, not passes: one file under two names gives two classes")

from collections.abc import Sequence

import onnx_ir as ir

from sparsec.passes import spec
from sparsec.passes.base import PassError, SparsecPass, SparsecResult
from sparsec.passes.dead_channels import RemoveDeadChannels
from sparsec.passes.entmax import RecogniseEntmax
from sparsec.passes.findings import Finding
from sparsec.passes.integer import RecogniseInteger
from sparsec.passes.low_rank import RecogniseLowRank
from sparsec.passes.nm_prune import PruneNM
from sparsec.passes.nm_recognise import RecogniseNM
from sparsec.passes.nm_regroup import RegroupChannels
from sparsec.passes.sparsemax import RecogniseSparsemax
from sparsec.passes.sparsemax_insert import InsertEntmax, InsertSparsemax
from sparsec.passes.threshold import RecogniseThreshold
from sparsec.passes.threshold_insert import InsertThreshold
from sparsec.passes.weight_quant import QuantiseWeights

# In the order in which they run: always, each exact, before any inserter.
RECOGNISERS: tuple[type[SparsecPass], ...] = (
    RecogniseInteger,
    RecogniseEntmax,
    RecogniseSparsemax,
    RecogniseThreshold,
    RemoveDeadChannels,
    RegroupChannels,
    RecogniseNM,
    RecogniseLowRank,
)

# In the order in which they are listed to the user; they run in the order of the pipeline text.
INSERTERS: tuple[type[SparsecPass], ...] = (
    PruneNM,
    InsertSparsemax,
    InsertEntmax,
    InsertThreshold,
    QuantiseWeights,
)


# Recognisers that must see a model before ingest refuses what only the recognised form spares: the entmax
# package's top-k forms hold a recomputation whose shapes depend on data.
EARLY: tuple[type[SparsecPass], ...] = (RecogniseEntmax, RecogniseSparsemax)
_EARLIER = "sparsec.findings"


def run_early(model: ir.Model) -> None:
    """Run the ``EARLY`` recognisers in place; ``run_pipeline`` reports what they applied."""
    findings = [finding for early in EARLY for finding in early()(model).findings if finding.applied]
    model.meta[_EARLIER] = findings


def parse_pipeline(text: str) -> list[SparsecPass]:
    """The inserters that ``text`` spells, e.g. ``nm{n=2,m=4},sparsemax``; PassError says what is wrong."""
    return spec.parse(text, {p.NAME: p for p in INSERTERS}, always=[r.NAME for r in RECOGNISERS])


def print_pipeline(passes: Sequence[SparsecPass]) -> str:
    """The text that :func:`parse_pipeline` turns back into ``passes``."""
    return spec.unparse(passes)


def run_pipeline(
    model: ir.Model, passes: Sequence[SparsecPass] | str = (), *, integers: bool = True
) -> list[Finding]:
    """Run every recogniser and then ``passes`` (or the pipeline text) on ``model``, in place.

    Without ``integers`` a quantised model stays one of floats between its roundings.

    Returns the findings of all in the order in which they were made.  Raises PassError where a pass cannot
    do what its options ask of this model; the model may then be changed in part.
    """
    if isinstance(passes, str):
        passes = parse_pipeline(passes)
    findings: list[Finding] = model.meta.pop(_EARLIER, [])
    recognisers = [r() for r in RECOGNISERS if integers or r is not RecogniseInteger]
    for pass_ in (*recognisers, *passes):
        findings.extend(pass_(model).findings)
    return findings


__all__ = [
    "EARLY",
    "INSERTERS",
    "RECOGNISERS",
    "Finding",
    "PassError",
    "SparsecPass",
    "SparsecResult",
    "parse_pipeline",
    "print_pipeline",
    "run_early",
    "run_pipeline",
]
