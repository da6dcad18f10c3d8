"""``sparsec sparsify``: ONNX in, ONNX out, with what the passes did to the output."""

import json
from collections.abc import Callable
from pathlib import Path

import click

from . import options, text, work

METHODS = ("random", "magnitude", "energy", "wanda", "dsnot", "awp", "sparsegpt", "obs", "search")
SPREADS = ("uniform", "global", "lamp", "erk")
"""Those of `sparsec.passes.prune`, spelled here so that help needs no NumPy; a test compares them."""

ASSUMED = 16  # for a symbolic dimension that is not the first, in the random inputs of the report


@click.command()
@click.argument("model", type=options.PATH)
@click.option("--passes", "passes_", default="", metavar="SPEC", help="What to do; see `sparsec passes`.")
@options.calib
@click.option(
    "--pattern",
    metavar="PATTERN[,...]",
    help="Prune to it with --calib: 2:4, 2:4x32 (32 outputs agree), 60%, 60%x16, channels:50% (between "
    "layers, removed from both). Of several, each layer "
    "gets one or stays dense, within the budget; without a budget where error begins to grow fast.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="search",
    show_default=True,
    help="How to choose what stays.",
)
@click.option(
    "--reconstruct/--no-reconstruct", default=True, help="Refit what stays by least squares, or leave it."
)
@click.option(
    "--group/--no-group",
    default=True,
    help="First put channels between layers into the order that suits the pattern, or leave theirs.",
)
@click.option(
    "--sweeps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How often to go over the model: each time after the first, all layers are refitted.",
)
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Put a low-rank term beside each pruned matrix that takes back most of the error; 0: none.",
)
@options.damping
@click.option(
    "--spread",
    type=click.Choice(SPREADS),
    default="uniform",
    show_default=True,
    help="How an unstructured share is spread over the layers.",
)
@options.mask
@options.layers
@options.skip
@click.option(
    "--min-size",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="Smaller layers stay dense.",
)
@click.option(
    "--state", type=options.PATH, metavar="DIR", help="Keep finished layers here, and resume from it."
)
@options.max_error("Write nothing if an output changes by more than E of its scale.")
@options.max_drop
@options.metric
@options.target_latency("the dense model's latency")
@click.option(
    "--target-size",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="R",
    help="Budget: R times the dense model's weights.",
)
@click.option("-o", "--output", "out", type=options.PATH, required=True, help="The ONNX file to write.")
@options.as_json
def sparsify(
    model: Path,
    passes_: str,
    calib: Path | None,
    max_error: float | None,
    max_drop: float | None,
    metric: str | None,
    target_latency: float | None,
    target_size: float | None,
    out: Path,
    as_json: bool,
    pattern: str | None,
    state: Path | None,
    **prune,
) -> None:
    """Apply passes to MODEL.onnx, or prune it with calibration data, and write the result as ONNX."""
    if not passes_ and not pattern:
        raise click.UsageError("Missing option '--passes' or '--pattern'.")
    if pattern and not calib:
        raise click.UsageError("--pattern needs --calib DATA.npz; without data there is --passes nm{...}.")
    budget = {"error": max_error, "drop": max_drop, "latency": target_latency, "size": target_size}
    mixed = bool(pattern) and ("," in pattern or any((max_drop, target_latency, target_size, metric)))
    if not pattern and any((max_drop, target_latency, target_size, metric)):
        raise click.UsageError("--max-drop, --metric and --target-... choose among patterns: name --pattern.")
    if mixed and (state or passes_):
        raise click.UsageError("--state and --passes do not go with a choice among patterns.")
    request = {
        "budget": budget | {"metric": metric} if mixed else None,
        "prune": prune | {"pattern": pattern, "state": str(state) if state else None} if pattern else None,
        "model": str(options.readable(model, "model")),
        "passes": passes_,
        "calib": str(options.readable(calib, "calibration file")) if calib else None,
        "max_error": max_error,
        "out": str(out),
    }
    found = work.do("sparsify", request)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for finding in found["findings"]:
        if finding["outcome"] == "applied" and finding["pass_name"] == "prune":
            continue  # is in the table
        mark = "+" if finding["outcome"] == "applied" else "-"
        node = text.visible(finding["node"])
        click.echo(f"{mark} {finding['pass_name']}  {node}: {text.visible(finding['reason'])}")
    if found["layers"]:
        click.echo(table(found["layers"]))
    if found["plan"]:
        click.echo("\n".join(planned(found["plan"])))
    for name, change in found["changes"].items():
        click.echo(
            f"output {text.visible(name)} changed by {change['max_rel_to_scale']:.2e} of its scale, "
            f"cosine {change['cosine']:.6f} ({found['inputs']})"
        )
    click.echo(f"wrote {text.visible(found['out'])}, {text.size(found['size'])}")


def transform(request: dict, log: Callable[[str], None]) -> dict:
    """Load, convert to an opset the passes take, run them, compare, publish by one rename."""
    import onnx_ir as ir

    from sparsec import passes
    from sparsec.compiler.errors import CompileError
    from sparsec.compiler.ingest import form, load, opset
    from sparsec.compiler.package import publish
    from sparsec.compiler.prune import PruneRequest, prune_model
    from sparsec.compiler.weight_quant import calibrated
    from sparsec.passes.weight_quant import QuantiseWeights

    pipeline = passes.parse_pipeline(request["passes"])
    log("read the model")
    model = opset.convert(load.load(request["model"]))
    form.infer(model)  # passes ask for dtypes and shapes
    before = ir.to_proto(model).SerializeToString()
    log("run the passes")
    late = [pass_ for pass_ in pipeline if isinstance(pass_, QuantiseWeights)]  # what it makes is not pruned
    early = [pass_ for pass_ in pipeline if pass_ not in late]
    findings, layers, plan = passes.run_pipeline(model, early), [], None
    if request["prune"]:
        asked = PruneRequest(calib=request["calib"], **request["prune"])
        if request["budget"]:
            model, found, layers, plan = allocated(model, asked, request["budget"], log)
        else:
            found, layers = prune_model(model, asked, log)
        findings += found
    for pass_ in calibrated(late, request["calib"], log):
        findings += pass_(model).findings
    after = ir.to_proto(model).SerializeToString()
    log("compare the outputs")
    feeds, told = inputs(model, request["calib"])
    changes = compare(before, after, feeds)
    worst = max(changes.items(), key=lambda item: item[1]["max_rel_to_scale"], default=None)
    limit = None if plan else request["max_error"]  # a plan has been judged on held-out data
    if limit is not None and worst and not worst[1]["max_rel_to_scale"] <= limit:
        raise CompileError(
            f"output {worst[0]!r} changes by {worst[1]['max_rel_to_scale']:.2e} of its scale, more than "
            f"--max-error {limit:g}; nothing was written"
        )
    publish(Path(request["out"]), [after])
    return {
        "out": request["out"],
        "size": len(after),
        "inputs": told,
        "changes": changes,
        "layers": layers,
        "plan": plan,
        "findings": [finding.to_json() for finding in findings],
    }


def allocated(model, asked, budget: dict, log) -> tuple:
    """The model with a pattern for each layer, its findings, reports and plan."""
    from sparsec.compiler.allocation.budget import Budget
    from sparsec.compiler.allocation.search import allocate
    from sparsec.passes.prune import parse_pattern

    patterns = [parse_pattern(text) for text in asked.pattern.split(",")]
    metric = budget.pop("metric")
    made = allocate(model, asked, patterns, Budget(**budget), metric, log)
    return made.model, made.findings, made.layers, made.plan


def inputs(model, calib: str | None) -> tuple[dict, str]:
    """Arrays to run on, and where they are from."""
    from sparsec.compiler import reference
    from sparsec.compiler.calibration import read_batches
    from sparsec.compiler.plan import Port

    if calib:
        return read_batches(calib, model)[0], "calibration data"
    ports, assumed = [], {}
    for value in model.graph.inputs:
        shape = []
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                name = dim.value or f"{value.name}[{axis}]"
                dim = assumed.setdefault(name, 1 if axis == 0 else ASSUMED)
            shape.append(dim)
        ports.append(Port(value.name, str(value.dtype.numpy()), tuple(shape), tuple(shape)))
    sizes = "".join(f", {name}={size}" for name, size in assumed.items())
    return reference.random_inputs(model, tuple(ports)), f"random inputs, seed {reference.SEED}{sizes}"


def compare(before: bytes, after: bytes, feeds: dict) -> dict[str, dict]:
    """Output name -> largest change, relative to the output's scale, and cosine similarity."""
    from sparsec.compiler import reference

    return reference.changes(*(reference.run_reference(model, feeds) for model in (before, after)))


def table(layers: list[dict]) -> str:
    """One line a layer: what stayed, and the error of its output before and after reconstruction."""
    width = max(len("layer"), *(len(text.visible(layer["node"])) for layer in layers))
    wide = max(len("pattern"), *(len(layer["pattern"]) for layer in layers))
    lines = [f"{'layer':{width}}  {'pattern':{wide}}    kept  energy  error: masked  reconstructed"]
    for layer in layers:
        lines.append(
            f"{text.visible(layer['node']):{width}}  {layer['pattern']:{wide}}  "
            f"{100 * layer['kept']:4.1f} %  {100 * layer['energy']:4.1f} %  "
            f"{100 * layer['error_before']:11.2f} %  {100 * layer['error_after']:11.2f} %"
        )
    return "\n".join(lines)


def planned(plan: dict) -> list[str]:
    """What was chosen, what it was expected to give and what it gave."""
    counts: dict[str, int] = {}
    for pattern in plan["patterns"].values():
        counts[pattern] = counts.get(pattern, 0) + 1
    chosen = ", ".join(f"{text.count(count, 'layer')} {pattern}" for pattern, count in counts.items())
    held, before = plan["held_out"], plan["dense_ms"]
    lines = [
        f"chosen    {chosen}; the others stay dense",
        f"latency   {plan['measured_ms']:.3g} ms, {plan['measured_ms'] / before:.2f} of the dense model's "
        f"{before:.3g} ms (predicted {plan['predicted_ms'] / before:.2f})",
        f"weights   {plan['size']:.2f} of the dense model's",
        f"held out  outputs change by {held['error']:.2e} of their scale, mean cosine {held['cosine']:.4f}",
    ]
    if held["drop"] is not None:
        lines.append(f"metric    drops by {held['drop']:.4f} on held-out data")
    return lines
