"""``sparsec inspect``: what is in a model or an artifact, as text, JSON or one HTML page."""

import json
from pathlib import Path

import click

from . import describe, options, text, work
from .compile import accuracy, layer_table


@click.command()
@click.argument("file", type=options.PATH)
@options.as_json
@click.option("--html", "as_html", is_flag=True, help="Print one self-contained HTML page.")
def inspect(file: Path, as_json: bool, as_html: bool) -> None:
    """Show what is in FILE, a model or an artifact."""
    if as_json and as_html:
        raise click.UsageError("--json and --html exclude each other")
    options.readable(file, "file")
    with file.open("rb") as opened:
        is_zip = opened.read(4) == b"PK\3\4"
    if is_zip:
        found = describe.artifact(file)
    else:
        found = work.do("inspect", {"model": str(file)})
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif as_html:
        from .html import page

        click.echo(page(found), nl=False)
    else:
        lines = artifact_lines(found) if is_zip else model_lines(found)
        click.echo("\n".join(lines))


def model_lines(found: dict) -> list[str]:
    """A model: header, ports, operators, layers with weights."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    by = f", by {text.visible(found['producer'])}" if found["producer"] else ""
    lines = [
        f"ONNX model {text.visible(found['file'])}, {text.size(found['bytes'])}{by}",
        f"opsets {opsets}; {found['parameters']:,} parameters, {text.size(found['weights_bytes'])}",
        "",
        *ports(found),
        "",
        *text.table(["operator", "count"], [[op, str(n)] for op, n in found["ops"].items()], "<>"),
    ]
    if found["layers"]:
        rows = []
        for layer in found["layers"]:
            zeros = f"{100 * layer['zeros']:.1f} %"
            rows.append(
                [
                    text.visible(layer["name"]),
                    layer["op"],
                    text.shape(layer["shape"]),
                    text.size(layer["dense_bytes"]),
                    zeros,
                    layer["pattern"],
                ]
            )
        lines += ["", *text.table(["layer", "op", "weight", "size", "zeros", "pattern"], rows, "<<<>><")]
        lines += [f"{text.visible(x['name'])}: {x['note']}" for x in found["layers"] if x["note"]]
    return lines


def artifact_lines(found: dict) -> list[str]:
    """An artifact: header, ports, layer groups, receipt, members."""
    lines = [
        f"artifact {text.visible(found['file'])}, {text.size(found['bytes'])}, for {text.machines(found)}",
        f"made by sparsec {found['sparsec_version']} with TVM {found['tvm_version']}; "
        f"passes: {found['passes'] or 'none'}",
        f"source model SHA-256 {found['source_sha256']}",
        *gpus(found),
        "",
        *ports(found),
        "",
        *layer_table(found["layers"]),
        "",
        f"weights  {text.size(found['weights_size'])}, arena {text.size(found['arena_size'])}",
        *accuracy(found["receipt"]),
        "",
    ]
    rows = [[name, text.size(m["size"]), m["sha256"]] for name, m in sorted(found["members"].items())]
    return lines + text.table(["member", "size", "SHA-256"], rows, "<><")


def gpus(found: dict) -> list[str]:
    """What an artifact for GPUs has kernels for."""
    gpu = found["gpu"]
    if not gpu:
        return []
    ptx = f", PTX for GPUs from {gpu['ptx']} on" if gpu["ptx"] else ""
    return [f"kernels for {', '.join(gpu['architectures'])}{ptx}, made by CUDA {gpu['cuda']}"]


def ports(found: dict) -> list[str]:
    rows = []
    for side in ("inputs", "outputs", "states"):
        for port in found.get(side, ()):  # a model has no states yet
            rows.append([side[:-1], text.visible(port["name"]), port["dtype"], port_shape(port)])
    return text.table(["", "name", "dtype", "shape"], rows, "<<<<")


def port_shape(port: dict) -> str:
    """``1 x 3 x 224``; a dimension that the model names is written ``batch=1`` where it was frozen."""
    dims = port["dims"]
    sizes = port.get("shape", dims)
    parts = [str(d) if d == s else f"{d}={s}" for d, s in zip(dims, sizes, strict=True)]
    return text.visible(" x ".join(parts)) or "scalar"
