"""Sparse or dense, layer by layer, and in which tiles: the fastest kernel, measured on this machine.

A layer with a pattern has both kernels timed once per structure, shape, CPU level and machine; the tuning
database remembers.  ``sparsec tune`` puts other tiles and dense layers in as well, and a compilation takes
the best of what is there.  Where this machine cannot run the level, a cost model decides.  Within
``NEAR_TIE`` the sparse kernel wins: it is smaller, and noise must not decide.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from sparsec.compiler.errors import CompileError
from sparsec.compiler.request import CompileRequest, runnable
from sparsec.compiler.to_relax.linear import attribute, pattern_text
from sparsec.compiler.to_relax.products import products
from sparsec.compiler.to_relax.weight_quant import why_not_sparse
from sparsec.compiler.tuning import measure
from sparsec.compiler.tuning.candidates import Candidate, kernels
from sparsec.compiler.tuning.database import Database
from sparsec.passes import Finding
from sparsec.passes.ops import weight_quant
from sparsec.schedules.contraction import Conv, Gemm, packed_for
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.elements import INT8
from sparsec.schedules.target import LEVELS

NEAR_TIE = 1.03
RATE = {"dense": 1.0, "shared": 1.0, "strips": 0.93, "strip": 0.7, "lanes": 0.73, "gather": 0.25}
"""Multiply-adds of a packed form relative to the dense kernel's rate, on the cores measured so far.

"strip" is a strip of one channel, "strips" are wider."""
TOO_SHORT = 10e-6
"""Seconds of a dense kernel below which calling it and reading positions cost as much as they save."""
SHARED = 16
"""The smallest block whose panels have one list of positions."""
_UNSKIPPED = (
    f"int8 kernels skip only what {SHARED} channels share, and on x86 what patterns leave out that keep 4, 8 "
    "or 12 of 16 neighbouring inputs"
)


@dataclass(frozen=True)
class Choices:
    """``kernels`` maps each node with a pattern to "sparse" or "dense".

    ``layers`` maps the structure that runs to the structure of its layer, where the two differ.  ``tiles``
    are those of a choices file, None where the tuning database says.
    """

    kernels: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    tiles: Mapping[str, Mapping[str, int]] | None = None


def choose(model: ir.Model, request: CompileRequest, levels: tuple[str, ...]) -> Choices:
    """The kernel of every node with a pattern, with the reason of each.

    Raises CompileError under ``sparsity="require"`` where dense is faster, and for a ``choices``
    file that cannot be read or names what the model does not have.
    """
    nodes = {
        node.name: node for node in model.graph if "m" in node.attributes and node.attributes["m"].as_int()
    }
    if request.choices:
        given, tiles = read_given(request.choices, nodes)
        why = [finding(nodes[name], kernel, "as given by --choices") for name, kernel in given.items()]
        return Choices(given, why, tiles=tiles)
    if request.sparsity == "off":
        why = [finding(node, "dense", "sparsity is off") for node in nodes.values()]
        return Choices(dict.fromkeys(nodes, "dense"), why)
    level = next(iter(runnable(levels)), None)
    permute = LEVELS[level or levels[0]].permute
    layers = {
        name: [(packed_for(spec, permute), weight) for spec, weight in products(node)]
        for name, node in nodes.items()
    }
    times = _times(dict(product for made in layers.values() for product in made), level, levels[0])
    found, slower = Choices(), []
    for name, node in nodes.items():
        specs = [spec for spec, _ in layers[name]]
        if node.op_type == weight_quant.NAME:
            reason, advice = why_not_sparse(node), ""
            kernel = "dense" if reason else "sparse"
            reason = reason or "only weights that are kept are read"
        else:
            dense, sparse = (sum(times[spec][i] for spec in specs) for i in (0, 1))
            how = times[specs[0]][2]
            kernel = "sparse" if sparse <= dense * NEAR_TIE else "dense"
            reason = f"{how}: sparse {sparse / dense:.2f}x the time of dense"
            if not any(skips(spec) for spec in specs):
                kernel, reason = "dense", _UNSKIPPED
            advice = _advice(node, dense, how) if kernel == "dense" else ""
        found.kernels[name] = kernel
        found.findings.append(finding(node, kernel, reason + advice))
        found.layers.update({to_text(Candidate(kernel).spec(spec)): to_text(spec) for spec in specs})
        if kernel == "dense":
            slower.append(f"{name} ({pattern_text(node)}, {reason})")
    if request.sparsity == "require" and slower:
        raise CompileError(
            f"--sparsity require: {len(slower)} layers would be slower sparse: {'; '.join(slower)}; "
            "prune them to a shared pattern such as 2:4x32, or use --sparsity auto"
        )
    return found


def skips(spec: Gemm | Conv) -> bool:
    """Whether the packed weight of a layer with a pattern leaves zeros out."""
    return spec.precision != INT8.name or not spec.packed.dense


def _advice(node: ir.Node, dense: float, how: str) -> str:
    """What to do about a layer whose sparse kernel is slower, as a clause."""
    if how == "measured" and dense < TOO_SHORT:
        return f"; dense takes {1e6 * dense:.1f} us, too short for a sparse kernel to gain: leave it dense"
    groups = attribute(node, "group", 1)
    own = int(node.outputs[0].shape[-1]) // groups
    if attribute(node, "block", 1) < min(SHARED, own):
        every = f"all {own} output channels" + (" of a group" if groups > 1 else "")
        shared = every if own <= SHARED else f"{SHARED} output channels or more"
        return f"; a pattern shared by {shared} runs at the dense kernel's rate"
    return ""


def finding(node: ir.Node, kernel: str, reason: str) -> Finding:
    """What was decided for ``node``."""
    outcome = "applied" if kernel == "sparse" else "declined"
    return Finding("choose", node.name, outcome, reason, pattern_text(node), kernel)


def read_given(path: str, nodes) -> tuple[dict[str, str], Mapping]:
    """The kernels and the tiles of a choices file: a manifest, or the kernels alone."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise CompileError(f"choices '{path}' cannot be read as JSON: {error}") from error
    whole = isinstance(content, dict) and "choices" in content
    given, tiles = (content["choices"], content.get("tiles", {})) if whole else (content, {})
    if (
        not isinstance(given, dict)
        or set(given) != set(nodes)
        or any(kernel not in ("sparse", "dense") for kernel in given.values())
    ):
        raise CompileError(
            f"choices '{path}' must map each of the {len(nodes)} layers with a pattern to "
            "'sparse' or 'dense'; take the 'choices' of an artifact of the same model"
        )
    if not _are_tiles(tiles):
        raise CompileError(
            f"choices '{path}': 'tiles' must map CPU levels to kernels to panels; take those of an "
            "artifact of the same model"
        )
    return given, tiles


def _are_tiles(tiles) -> bool:
    return isinstance(tiles, dict) and all(
        isinstance(by_kernel, dict)
        and all(type(panels) is int and panels > 0 for panels in by_kernel.values())
        for by_kernel in tiles.values()
    )


def _times(weights: dict, level: str | None, first: str) -> dict:
    """``spec -> (dense seconds, sparse seconds, how they are known)``; ``weights`` has one for each spec.

    Measured on ``level``; where this machine runs none, counted for ``first``.
    """
    if level is None:
        counted = {spec: _model(spec, weight.shape[-1], first) for spec, weight in weights.items()}
        return {spec: (*times, "estimated") for spec, times in counted.items()}
    database, here = Database(), measure.context(level)
    known = database.read(here)
    missing = [spec for spec in weights if not {"dense", "sparse"} <= known.get(to_text(spec), {}).keys()]
    if missing:
        measured = measure.measure(
            {spec: weights[spec] for spec in missing}, {spec: kernels(spec) for spec in missing}, level
        )
        with contextlib.suppress(CompileError):  # a database that cannot be written costs the repetition
            database.add(here, measured)
        known = {**known, **measured}
    return {
        spec: (best(known[to_text(spec)], "dense"), best(known[to_text(spec)], "sparse"), "measured")
        for spec in weights
    }


def best(times: Mapping[str, float], kernel: str) -> float:
    """Seconds of the fastest tile of ``kernel``."""
    return min(seconds for text, seconds in times.items() if Candidate.parse(text).kernel == kernel)


def _model(spec, channels: int, level: str) -> tuple[float, float]:
    """Relative times by counting multiply-adds over ``channels`` input channels."""
    if spec.strips:
        strips = spec.strips
        stored = strips.slots * strips.width / (strips.out * strips.taps * channels)
        return 1.0, stored / RATE["strip" if strips.width == 1 else "strips"]
    form = spec.pattern.form(channels)
    rate = RATE["gather" if form == "lanes" and not LEVELS[level].permute else form]
    return 1.0, spec.pattern.kept(channels) / channels / rate
