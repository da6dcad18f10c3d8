"""Variants: one network in several patterns, in one file, of which a loader takes one.

Where weights are nested, as after training for several patterns at once, the largest n of each m are a
network of their own.  Each variant keeps those of the layers that have a pattern; what variants have in
common, such as embeddings, biases and layers that stay dense, is in the file once.
"""

from collections.abc import Callable
from dataclasses import replace

from sparsec import passes
from sparsec.compiler.errors import CompileError
from sparsec.compiler.package import Made, variant_member
from sparsec.compiler.planner import Weights
from sparsec.compiler.request import CompileRequest
from sparsec.passes.nm_pattern import NM
from sparsec.passes.nm_prune import PruneNM
from sparsec.runtime.manifest import KERNELS, WEIGHTS

OWN = ("passes", "layers", "choices", "tiles", "packings", "receipt", "arena_size")
"""The manifest's fields that each variant has for itself."""


def make(request: CompileRequest, compile_one: Callable[[CompileRequest, Weights], Made], log) -> Made:
    """``compile_one`` for each of ``request.variants``, joined; the first one is the default.

    Raises CompileError where no layer has a pattern that could be tightened.
    """
    patterns = [NM.parse(text) for text in request.variants]
    weights, made = Weights(), {}
    # The default comes last: its library sees the table of weights whole, those of others a beginning of it.
    for nm in reversed(patterns):
        log(f"variant {nm}")
        tighten = PruneNM(nm.n, nm.m, nm.block, only="sparse")
        text = passes.print_pipeline([*passes.parse_pipeline(request.passes), tighten])
        made[str(nm)] = compile_one(replace(request, passes=text, variants=()), weights)
        if all(layer["pattern"] == "dense" for layer in made[str(nm)].manifest["layers"]):
            raise CompileError(
                "--variants: no layer of the model has a pattern that could be tightened; prune it first, "
                f"as in --passes 'nm{{n={patterns[0].n},m={patterns[0].m}}}'"
            )
    return _join({str(nm): made[str(nm)] for nm in patterns})


def _join(made: dict[str, Made]) -> Made:
    default = next(iter(made))
    members, libraries = dict(made[default].members), []
    for name, variant in made.items():
        entries = [{**library, "variant": name} for library in variant.manifest["libraries"]]
        if name != default:
            entries = [{**entry, **_elsewhere(entry["member"], variant, name)} for entry in entries]
            beside = {member: data for member, data in variant.members.items() if member != WEIGHTS}
            members |= {variant_member(member, name): data for member, data in beside.items()}
        libraries += entries
    own = {
        name: {field: variant.manifest[field] for field in OWN if field in variant.manifest}
        for name, variant in made.items()
    }
    manifest = {**made[default].manifest, "libraries": libraries, "variants": own}
    report = {**made[default].report, "variants": {name: variant.report for name, variant in made.items()}}
    return Made(manifest, members, report)


def _elsewhere(member: str, variant: Made, name: str) -> dict:
    """What the entry of a library says where it is not the default's."""
    kernels = {"kernels": variant_member(KERNELS, name)} if KERNELS in variant.members else {}
    size = variant.manifest["weights_size"]
    return {"member": variant_member(member, name), "weights_size": size, **kernels}
