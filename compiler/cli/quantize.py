"""``sparsec quantize``: ONNX in, ONNX with int8 layers (QDQ) out, with what that did to the output."""

import json
from collections.abc import Callable
from pathlib import Path

import click

from . import options, text, work
from .sparsify import METHODS

RANGES = ("best", "minmax", "percentile", "entropy", "mse")
ROUNDINGS = ("nearest", "gpfq", "obs", "descent")
"""Those of `sparsec.passes.quantize`, spelled here so that help needs no NumPy; a test compares them."""


@click.command()
@click.argument("model", type=options.PATH)
@click.option(
    "--calib",
    type=options.PATH,
    metavar="DATA.npz",
    required=True,
    help="Real inputs, one array per input name.",
)
@click.option(
    "--ranges",
    type=click.Choice(RANGES),
    default="best",
    show_default=True,
    help="How to choose the range of an activation; best: for each the one with the least error.",
)
@click.option(
    "--rounding",
    type=click.Choice(ROUNDINGS),
    default="descent",
    show_default=True,
    help="How to round weights: each by itself, or for the least error of the layer's output.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="STEPS",
    help="With --rounding gpfq: weights become zero below so many steps of 1/127 of their channel's largest.",
)
@click.option(
    "--soft/--hard",
    default=False,
    help="With --threshold: what is larger shrinks by as much, or stays.",
)
@click.option(
    "--migrate/--no-migrate",
    default=True,
    help="Even out the channels of activations by scales that weights take back, where that helps.",
)
@click.option(
    "--pattern", default="", metavar="PATTERN", help="Prune to it, too: 2:4, 2:4x32 (32 outputs agree), 60%."
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="search",
    show_default=True,
    help="With --pattern: how to choose what stays.",
)
@click.option(
    "--group/--no-group",
    default=True,
    help="With --pattern: first put channels into the order that suits it.",
)
@click.option(
    "--min-size",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="With --pattern: smaller layers are not pruned.",
)
@options.damping
@click.option(
    "--floats",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    metavar="SHARE",
    help="Share of the multiply-adds that may stay float32 where that takes back most of the error.",
)
@options.mask
@options.layers
@options.skip
@options.max_error("Budget: outputs change by at most E of their scale on samples that were held out.")
@options.max_drop
@options.metric
@click.option("-o", "--output", "out", type=options.PATH, required=True, help="The ONNX file to write.")
@options.as_json
def quantize(model: Path, calib: Path, out: Path, as_json: bool, **asked) -> None:
    """Quantise the layers of MODEL.onnx to int8 with calibration data, and write the result as ONNX."""
    if asked["threshold"] and asked["rounding"] != "gpfq":
        raise click.UsageError("--threshold goes with --rounding gpfq.")
    if asked["soft"] and not asked["threshold"]:
        raise click.UsageError("--soft goes with --threshold.")
    if asked["metric"] and asked["max_drop"] is None:
        raise click.UsageError("--metric goes with --max-drop.")
    request = asked | {
        "model": str(options.readable(model, "model")),
        "calib": str(options.readable(calib, "calibration file")),
        "out": str(out),
    }
    found = work.do("quantize", request)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for finding in found["findings"]:
        if finding["outcome"] == "declined":
            click.echo(f"- {text.visible(finding['node'])}: {text.visible(finding['reason'])}")
    click.echo("\n".join(text.table(HEADINGS, rows(found["layers"]), "<<<<>>>")))
    if found["held_out"]:
        click.echo(f"held out  {found['held_out']}")
    for name, change in found["changes"].items():
        click.echo(
            f"output {text.visible(name)} changed by {change['max_rel_to_scale']:.2e} of its scale, "
            f"cosine {change['cosine']:.6f} (calibration data)"
        )
    click.echo(f"wrote {text.visible(found['out'])}, {text.size(found['size'])}")


HEADINGS = ["layer", "as", "input", "migration", "error: nearest", "fitted", "of output"]


def rows(layers: list[dict]) -> list[list[str]]:
    """One a layer: the range of its input, the error of its output in percent of its variance, with weights
    rounded to the nearest and as they are, and the share that its quantisation has in the outputs' error."""
    return [
        [
            text.visible(layer["node"]),
            layer["precision"] + (f" {layer['pattern']}" if layer["pattern"] != "dense" else ""),
            f"[{layer['low']:.3g}, {layer['high']:.3g}] {layer['range']}",
            layer["migration"],
            f"{100 * layer['error_before']:.3f} %",
            f"{100 * layer['error_after']:.3f} %",
            f"{100 * layer['share']:.0f} %" if "share" in layer else "",
        ]
        for layer in layers
    ]


def transform(request: dict, log: Callable[[str], None]) -> dict:
    """Load, quantise, compare, publish by one rename."""
    import onnx_ir as ir

    from sparsec.compiler.calibration import read_batches
    from sparsec.compiler.ingest import form, load, opset
    from sparsec.compiler.package import publish
    from sparsec.compiler.quantize import QuantizeRequest, quantize_model

    from .sparsify import compare

    path, out = request.pop("model"), request.pop("out")
    log("read the model")
    model = opset.convert(load.load(path))
    form.infer(model)
    before = ir.to_proto(model).SerializeToString()
    made = quantize_model(model, QuantizeRequest(**request), log)
    after = ir.to_proto(model).SerializeToString()
    log("compare the outputs")
    changes = compare(before, after, read_batches(request["calib"], model)[0])
    publish(Path(out), [after])
    return {
        "out": out,
        "size": len(after),
        "changes": changes,
        "layers": made.layers,
        "held_out": str(made.held_out) if made.held_out else None,
        "findings": [finding.to_json() for finding in made.findings],
    }
