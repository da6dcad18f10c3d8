"""``sparsec tune``: time the candidate kernels of a model's layers, keep the times for every compilation."""

import json
from collections.abc import Callable
from pathlib import Path

import click

from . import options, text, work


@click.command()
@click.argument("model", type=options.PATH, required=False)
@options.target
@options.passes
@options.shapes
@options.dims
@click.option("--again", is_flag=True, help="Measure what the database knows already, too.")
@click.option(
    "--database",
    type=options.PATH,
    metavar="FILE",
    help="The database to write; by default the one that compile reads, in $SPARSEC_CACHE.",
)
@click.option(
    "--merge",
    type=options.PATH,
    metavar="FILE",
    multiple=True,
    help="Take over the times of another database.",
)
@options.as_json
def tune(
    model: Path | None, target: str, passes_: str, shapes, dims, again: bool, database, merge, as_json: bool
) -> None:
    """Find the fastest kernels for the layers of MODEL.onnx on this machine."""
    if model is None and not merge:
        raise click.UsageError("name a MODEL.onnx to tune, or databases to --merge")
    request = {
        "model": str(options.readable(model, "model")) if model else "",
        "target": target,
        "passes": passes_,
        "shapes": options.unique(shapes, "--shape"),
        "dims": options.unique(dims, "--dim"),
        "again": again,
        "database": str(database) if database else None,
        "merge": [str(options.readable(path, "database")) for path in merge],
    }
    found = work.do("tune", request)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for path, rows in found["merged"].items():
        click.echo(f"merged {text.count(rows, 'structure')} of {text.visible(path)}")
    if found["records"]:
        header = ["level", "layers", "op", "shape", "pattern", "counted", "best", "candidate", "gain"]
        click.echo("\n".join(text.table(header, list(map(row, found["records"])), "<><<<>><>")))
    click.echo(f"wrote {text.visible(found['database'])}")


def row(record: dict) -> list[str]:
    """The kernel that would run untuned, the fastest candidate, and what that gains."""
    times = record["times"]
    counted = min(seconds for candidate, seconds in times.items() if "/" not in candidate)
    name = min(times, key=times.get)
    return [
        record["level"],
        str(len(record["layers"])),
        record["op"],
        record["shape"],
        record["pattern"],
        text.duration(counted),
        text.duration(times[name]),
        name,
        f"{counted / times[name]:.2f}x",
    ]


def work_on(request: dict, log: Callable[[str], None]) -> dict:
    """The task of the worker process."""
    from sparsec.compiler.request import CompileRequest
    from sparsec.compiler.tuning.database import Database
    from sparsec.compiler.tuning.tune import tune

    path = request.pop("database")
    database = Database(Path(path) if path else None)
    merged = {other: database.merge(Path(other)) for other in request.pop("merge")}
    again, records = request.pop("again"), []
    if request["model"]:
        asked = CompileRequest.from_json({**request, "out": ""})
        records = tune(asked, database, again=again, log=log)
    return {"records": records, "merged": merged, "database": str(database.path)}
