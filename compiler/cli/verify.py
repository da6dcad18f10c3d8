"""``sparsec verify``: is this file whole, does it fit this machine, and does it compute the model?"""

import json
from pathlib import Path

import click

from . import options, text, work
from .failure import Failure


@click.command()
@click.argument("artifact", type=options.PATH)
@click.option("--model", type=options.PATH, help="Compare with this ONNX model in ONNX Runtime, too.")
@options.variant
@options.signed_by
@options.as_json
def verify(artifact: Path, model: Path | None, variant: str | None, key: Path | None, as_json: bool) -> None:
    """Check ARTIFACT's structure, hashes and target; with --model also its numbers."""
    from sparsec.runtime import load

    with load(artifact, require_signature=key, variant=variant) as loaded:
        members = loaded.manifest["members"]
        found = {
            "file": str(artifact),
            "bytes": artifact.stat().st_size,
            "members": len(members),
            "level": loaded.level,
            "signed_by": key and str(key),
            "outputs": {},
        }
    if model is not None:
        request = {"artifact": str(artifact), "model": str(options.readable(model, "model"))}
        request["variant"] = variant
        found |= work.do("verify", request)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n".join(lines(found)))
    wrong = [name for name, error in found["outputs"].items() if not error["within"]]
    if wrong:
        raise Failure(
            f"{str(artifact)!r} does not compute {str(model)!r}: output {wrong[0]!r} differs by "
            f"{found['outputs'][wrong[0]]['max_rel_to_scale']:.2e} of its scale; {blame(found)}"
        )


def compare(request: dict, log) -> dict:
    """Run both on seeded inputs; runs in the worker, since the model is foreign."""
    import hashlib

    import onnx_ir as ir

    from sparsec import passes
    from sparsec.compiler import check, reference
    from sparsec.compiler.front import ports
    from sparsec.compiler.ingest import ingest
    from sparsec.compiler.locate import first_divergence
    from sparsec.runtime import load

    data = Path(request["model"]).read_bytes()
    with load(request["artifact"], variant=request["variant"]) as loaded:
        log("read the model")
        shapes = {info.name: info.shape for info in (*loaded.inputs, *loaded.states)}
        model = ingest(request["model"], shapes, {})
        feeds = reference.random_inputs(model, ports(model.graph.inputs))
        spelled = loaded.manifest["passes"]
        passes.run_pipeline(model, spelled)
        meant = ir.to_proto(model).SerializeToString() if spelled else request["model"]
        log("run both")
        precision = loaded.manifest.get("precision", "fp32")
        found = check.Oracle(meant, feeds, precision).differences(check.outputs_of(loaded, feeds))
        same = loaded.manifest["source_sha256"] == hashlib.sha256(data).hexdigest()
    result = {
        "same_source": same,
        "outputs": {name: difference.to_json() for name, difference in found.items()},
        "inputs": f"random inputs, seed {reference.SEED}",
        "first_divergence": None,
    }
    if not all(difference.within for difference in found.values()):
        log("look for the first layer that differs")
        divergence = first_divergence(model, feeds)
        if divergence:
            op, node, difference = divergence
            result["first_divergence"] = {"op": op, "node": node, **difference.to_json()}
    return result


def blame(found: dict) -> str:
    """Where the numbers part, and what to do about it."""
    first = found["first_divergence"]
    if not found["same_source"]:
        return "it was compiled from another file: compile this one"
    if first is None:
        return "each layer by itself is right when compiled anew: compile the model again"
    return f"the first layer that differs is {first['op']} '{first['node']}': please report it"


def lines(found: dict) -> list[str]:
    shown = [
        f"ok  {text.visible(found['file'])}: {text.size(found['bytes'])}, "
        f"{text.count(found['members'], 'member')}, every hash matches, runs here at level {found['level']}"
    ]
    if found["signed_by"]:
        shown.append(f"ok  it was signed with the key of {text.visible(found['signed_by'])}")
    if "same_source" in found:
        shown.append(
            "ok  it was compiled from this very model file"
            if found["same_source"]
            else "--  it was compiled from another model file (the SHA-256 differs)"
        )
    for name, error in found["outputs"].items():
        mark = "ok" if error["within"] else "--"
        shown.append(
            f"{mark}  output {text.visible(name)}: {error['max_rel_to_scale']:.1e} of its scale "
            f"from ONNX Runtime ({found['inputs']})"
        )
    return shown
