"""``sparsec explain``: per layer what was found, what was declined and why, and what it gains."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import click

from . import options, text, work


@click.command()
@click.argument("model", type=options.PATH)
@options.target
@options.passes
@options.shapes
@options.dims
@options.precision(click.Choice(options.PRECISIONS))
@options.as_json
def explain(model: Path, target: str, passes_: str, shapes, dims, precision: str, as_json: bool) -> None:
    """Say what sparsity MODEL.onnx has, layer by layer, and what it is worth on the target."""
    from sparsec.compiler.request import CompileRequest

    request = CompileRequest(
        model=str(options.readable(model, "model")),
        out="",
        target=target,
        passes=passes_,
        shapes=options.unique(shapes, "--shape"),
        dims=options.unique(dims, "--dim"),
        precision=precision,
    )
    found = work.do("explain", request.to_json())
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n".join(sentences(found)))


def analyse(request: dict, log: Callable[[str], None]) -> dict:
    """Ingest, run the passes, choose kernels; compile nothing but the kernels that are timed."""
    from sparsec import passes
    from sparsec.compiler import precision
    from sparsec.compiler.channels_last import channels_last
    from sparsec.compiler.choices import choose
    from sparsec.compiler.cuda import choices as gpu_choices
    from sparsec.compiler.ingest import ingest
    from sparsec.compiler.request import CompileRequest, cpu_levels, gpu_names
    from sparsec.compiler.to_relax.attention import attentions
    from sparsec.passes import nm_layers
    from sparsec.passes.graph import node_name

    asked = CompileRequest.from_json(request)
    log("read the model")
    model = ingest(asked.model, asked.shapes, asked.dims, log=log)
    layers = {}
    for layer in nm_layers.find_layers(model):
        layers[node_name(layer.node)] = described(layer)
    log("find sparsity")
    findings = [finding.to_json() for finding in passes.run_pipeline(model, asked.pipeline)]
    for layer in nm_layers.find_integers(model):
        layers[node_name(layer.node)] = described(layer)
    for layer in chain(nm_layers.find_layers(model), nm_layers.find_integers(model)):
        if "m" in layer.node.attributes and node_name(layer.node) in layers:
            n, m = (layer.node.attributes[key].as_int() for key in ("n", "m"))
            k = layer.weight.shape[-1]
            layers[node_name(layer.node)]["kept"] = (k // m * n + k % m) / k
    log("time the kernels")
    channels_last(model)
    if gpu_names(asked.target):
        why = gpu_choices.choose(model, asked).findings
    else:
        judged = precision.judged(model, asked.precision)
        levels = cpu_levels(asked.target, judged if asked.precision == "fp32" else asked.precision)
        why = precision.assign(model, asked.precision, levels)
        choices = choose(model, asked, levels)
        attended = attentions(model)
        narrow = precision.narrow(model, choices.kernels, attended=attended)
        why += [*choices.findings, *precision.told(model, choices.kernels, attended, narrow)]
    return {"layers": layers, "findings": findings + [finding.to_json() for finding in why]}


def described(layer) -> dict:
    """What is said of a layer; none of its multiply-adds is known to be spared yet."""
    return {
        "op": layer.standard,
        "shape": list(layer.array.shape),
        "multiply_adds": layer.multiply_adds,
        "kept": 1.0,
    }


def sentences(found: dict) -> list[str]:
    """One paragraph for each layer and node that something was decided about, then the sum."""
    by_node: dict[str, list[dict]] = {}
    for finding in found["findings"]:
        by_node.setdefault(finding["node"], []).append(finding)
    lines = []
    for name, findings in by_node.items():
        layer = found["layers"].get(name)
        what = f"{layer['op']}, weight {text.shape(layer['shape'])}" if layer else findings[0]["before"]
        lines.append(click.style(f"{text.visible(name)} ({what})", bold=True))
        lines += [f"  {sentence(finding)}" for finding in findings]
    total = sum(layer["multiply_adds"] for layer in found["layers"].values())
    kept = sum(layer["multiply_adds"] * layer["kept"] for layer in found["layers"].values())
    told = len(by_node.keys() & found["layers"].keys())
    rest = len(found["layers"]) - told
    if rest:
        lines.append(f"{text.count(rest, 'other layer')} with constant weights: dense, nothing to gain.")
    if kept < total:
        lines.append(
            f"{100 * kept / total:.0f} % of the multiply-adds in layers with constant weights remain: "
            f"at most {total / kept:.2f}x faster there."
        )
    elif not found["findings"]:
        lines.append("No sparsity was found; `sparsec passes` lists what can be inserted with --passes.")
    return lines


def sentence(finding: dict) -> str:
    """One finding as a sentence."""
    verb = "" if finding["outcome"] == "applied" else "declined, "
    change = f" [{finding['before']} -> {finding['after']}]" if finding["before"] != finding["after"] else ""
    return f"{finding['pass_name']}: {verb}{text.visible(finding['reason'])}{text.visible(change)}"
