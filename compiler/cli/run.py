"""``sparsec run``: one inference; needs the runtime and numpy, nothing else."""

import json
from pathlib import Path

import click

from . import options, text
from .failure import Failure


@click.command()
@click.argument("artifact", type=options.PATH)
@click.option("--input", "inputs", type=options.NamedFile(), multiple=True, help="An input as a .npy file.")
@click.option("--output-dir", type=options.PATH, help="Write each output as a .npy file into this folder.")
@options.threads
@options.device
@options.variant
@options.signed_by
@options.as_json
def run(
    artifact: Path,
    inputs,
    output_dir: Path | None,
    threads: int,
    device: int | None,
    variant: str | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Run ARTIFACT once on the inputs given and say what came out."""
    import numpy as np

    from sparsec.runtime import load

    options.readable(artifact, "artifact")
    model = load(artifact, threads=threads, device=device, require_signature=key, variant=variant)
    feeds = {name: array(path) for name, path in options.unique(inputs, "--input").items()}
    outputs = model(feeds)
    files = save(outputs, output_dir) if output_dir is not None else {}
    found = [summary(name, value, files.get(name)) for name, value in outputs.items()]
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    rows = []
    for entry, value in zip(found, outputs.values(), strict=True):
        flat = np.asarray(value).ravel()
        shown = " ".join(f"{x:.6g}" for x in flat[:4].tolist()) + (" ..." if flat.size > 4 else "")
        rows.append([entry["name"], entry["dtype"], text.shape(entry["shape"]), shown, entry["file"] or ""])
    columns = 5 if output_dir is not None else 4
    header = ["output", "dtype", "shape", "values", "file"][:columns]
    click.echo("\n".join(text.table(header, [row[:columns] for row in rows], "<" * columns)))


def array(path: Path):
    """The array in a .npy file; pickled objects are refused, they can run code."""
    import numpy as np

    options.readable(path, "input file")
    try:
        value = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Failure(f"input file {str(path)!r} is not a .npy file of numbers: {error}") from error
    if not isinstance(value, np.ndarray):
        raise Failure(f"input file {str(path)!r} holds several arrays; give one .npy file for each input")
    return value


def save(outputs: dict, folder: Path) -> dict[str, str]:
    """Write each output; names that are no file names get a number instead.  Name -> path."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for index, (name, value) in enumerate(outputs.items()):
        plain = name.isprintable() and "/" not in name and name not in ("", ".", "..") and len(name) < 200
        path = folder / f"{name if plain else f'output{index}'}.npy"
        np.save(path, value, allow_pickle=False)
        paths[name] = str(path)
    return paths


def summary(name: str, value, file: str | None) -> dict:
    return {"name": name, "dtype": str(value.dtype), "shape": list(value.shape), "file": file}
