"""``sparsec compile``: the main job, in a worker process; ends with a table that says what was made."""

import json
from pathlib import Path

import click

from . import options, text, work


@click.command("compile")
@click.argument("model", type=options.PATH)
@click.option("-o", "--output", "out", type=options.PATH, help="Artifact to write; MODEL.sparsec by default.")
@options.target
@options.passes
@options.shapes
@options.dims
@click.option(
    "--sparsity",
    type=click.Choice(["auto", "require", "off"]),
    default="auto",
    show_default=True,
    help="Use sparse kernels where they are faster, insist on them, or ignore sparsity.",
)
@options.precision(
    options.Precision(options.PRECISIONS),
    " bf16,int8: each layer gets one or stays fp32, within a budget; without one where error begins to "
    "grow fast.",
)
@options.calib
@click.option(
    "--pattern",
    "patterns",
    type=options.Patterns(),
    default=(),
    help="With such a choice: layers may be pruned to one of these, too.",
)
@options.max_error(
    "Budget: outputs change by at most E of their scale on samples of --calib that were held out."
)
@options.max_drop
@options.metric
@options.target_latency("the latency in float32")
@click.option(
    "--state",
    "states",
    type=options.State(),
    multiple=True,
    help="Keep an output for the next run, as this input; patterns with one * work, too.",
)
@click.option(
    "--variants",
    type=options.Patterns(),
    default=(),
    help="Have the network in each of these patterns in the file; layers that have one are tightened.",
)
@click.option("--choices", type=options.PATH, metavar="FILE", help="Replay the choices of another artifact.")
@click.option(
    "--verify/--no-verify", default=True, help="Compare with ONNX Runtime before publishing (the default)."
)
@click.option("--dump-dir", type=options.PATH, metavar="D", help="Write the model after every stage into D.")
@click.option(
    "--exportable",
    is_flag=True,
    help="Keep objects to link and a checked sample in the artifact, for `sparsec export`.",
)
@click.option("--keep-source", is_flag=True, help="Put the CUDA C of GPU kernels into the artifact, too.")
@options.as_json
def compile_(
    model: Path,
    out: Path | None,
    target: str,
    passes_: str,
    shapes,
    dims,
    sparsity: str,
    precision: str,
    calib: Path | None,
    patterns: tuple[str, ...],
    max_error: float | None,
    max_drop: float | None,
    metric: str | None,
    target_latency: float | None,
    states,
    variants: tuple[str, ...],
    choices: Path | None,
    verify: bool,
    dump_dir: Path | None,
    exportable: bool,
    keep_source: bool,
    as_json: bool,
) -> None:
    """Compile MODEL.onnx to one verified file."""
    from sparsec.compiler.request import CompileRequest

    request = CompileRequest(
        model=str(options.readable(model, "model")),
        out=str(out or model.with_suffix(".sparsec")),
        target=target,
        passes=passes_,
        shapes=options.unique(shapes, "--shape"),
        dims=options.unique(dims, "--dim"),
        sparsity=sparsity,
        precision=precision,
        patterns=patterns,
        max_error=max_error,
        max_drop=max_drop,
        metric=metric,
        target_latency=target_latency,
        calib=str(options.readable(calib, "calibration file")) if calib else None,
        choices=str(options.readable(choices, "choices file")) if choices else None,
        states=options.unique(states, "--state"),
        variants=variants,
        verify=verify,
        dump_dir=str(dump_dir) if dump_dir else None,
        exportable=exportable,
        keep_source=keep_source,
    )
    report = work.do("compile", request.to_json())
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo("\n".join(summary(report)))


def work_on(request: dict, log) -> dict:
    """The task of the worker process."""
    from sparsec.compiler.pipeline import compile_model
    from sparsec.compiler.request import CompileRequest

    return compile_model(CompileRequest.from_json(request), log=log)


def summary(report: dict) -> list[str]:
    """The closing lines: layer groups with pattern, kernel and size, then accuracy and the file."""
    lines = [*plan_table(report["plan"]), ""] if report.get("plan") else []
    lines += layer_table(report["layers"])
    asked = report["precision"]
    if asked != "fp32" and all(precision_of(layer) == "float32" for layer in report["layers"]):
        lines.append(f"no layer computes in {asked}; `sparsec explain --precision {asked}` says why")
    lines.append("")
    lines.append(f"weights  {text.size(report['weights_bytes'])}, arena {text.size(report['arena_bytes'])}")
    lines += accuracy(report["receipt"])
    for name, made in list(report.get("variants", {}).items())[1:]:
        lines += [f"variant  {name}", *accuracy(made["receipt"])]
    size, seconds = text.size(report["size"]), text.duration(report["seconds"])
    lines.append(f"wrote    {text.visible(report['out'])}, {size}, in {seconds}")
    return lines


def plan_table(plan: dict) -> list[str]:
    """One line for each layer: the form that it got, its kernels' time, what that does to the outputs; then
    the whole model beside those of one precision."""
    rows = [
        [
            text.visible(layer["node"]),
            layer["pattern"],
            layer["precision"],
            f"{layer['ms']:.3g} ms",
            f"{layer['ms'] / layer['float32_ms']:.2f}",
            f"{layer['error']:.1e}",
        ]
        for layer in plan["layers"]
    ]
    lines = text.table(["layer", "pattern", "precision", "time", "of fp32", "error alone"], rows, "<<<>>>")
    whole = [["as chosen", plan["measured_ms"], plan["held_out"]]]
    whole += [[f"{name} throughout", made["ms"], made] for name, made in plan["uniform"].items()]
    rows = [
        [
            name,
            f"{ms:.3g} ms",
            f"{ms / plan['float32_ms']:.2f}",
            f"{held['error']:.1e}",
            f"{held['cosine']:.5f}",
            *([] if held["drop"] is None else [f"{held['drop']:.4f}"]),
        ]
        for name, ms, held in whole
    ]
    headings = ["whole model", "time", "of fp32", "error, held out", "cosine", "drop"][: len(rows[0])]
    return [*lines, "", *text.table(headings, rows, "<" + ">" * (len(headings) - 1))]


def layer_table(layers: list[dict]) -> list[str]:
    """One line for each kind of layer in order of first appearance, and a sum of the sizes; with a column
    for the precision where a layer says one."""
    told = any("precision" in layer for layer in layers)
    groups: dict[tuple[str, ...], list[int]] = {}
    for layer in layers:
        precision = [precision_of(layer)] if told else []
        group = groups.setdefault((layer["op"], layer["pattern"], *precision, layer["kernel"]), [0, 0, 0])
        group[0] += 1
        group[1] += layer["dense_bytes"]
        group[2] += layer["packed_bytes"]
    rows = []
    for kind, (number, dense, packed) in groups.items():
        sizes = [text.size(dense), text.size(packed)] if dense or packed else ["", ""]
        rows.append([str(number), *kind, *sizes])
    headings = ["op", "pattern", *(["precision"] if told else []), "kernel"]
    if len(rows) > 1:
        number, dense, packed = (sum(group[i] for group in groups.values()) for i in range(3))
        empty = [""] * (len(headings) - 1)
        rows.append([str(number), "in all", *empty, text.size(dense), text.size(packed)])
    return text.table(["layers", *headings, "dense", "packed"], rows, ">" + "<" * len(headings) + ">>")


def precision_of(layer: dict) -> str:
    """What a layer of a report computes in."""
    return layer.get("precision", "float32")


def accuracy(receipt: dict) -> list[str]:
    """One line for each output: its error against ONNX Runtime and what is allowed; what was not run."""
    if not receipt:
        return ["error    not compared with ONNX Runtime (--no-verify)"]
    allowed = receipt["tolerance"]["relative"]
    how = ", under QEMU" if receipt.get("emulated") else ""
    how += f", kernels of CPU level {receipt['stand_in']} in their place" if receipt.get("stand_in") else ""
    lines = [
        f"error    {found['max_rel_to_scale']:.1e} of {text.visible(name)}'s scale, against ONNX Runtime "
        f"({receipt['input']}; allowed {allowed:.0e}{how})"
        for name, found in receipt["max_error"].items()
    ]
    lines += [
        f"moved    {found['max_rel_to_scale']:.1e} of {text.visible(name)}'s scale, cosine "
        f"{found['cosine']:.6f}, against the model in float32"
        for name, found in receipt.get("float32", {}).items()
    ]
    not_run = receipt.get("not_run", {})
    return lines + [f"error    level {level} was not compared: {why}" for level, why in not_run.items()]
