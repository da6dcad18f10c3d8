"""``sparsec deploy``: onto devices over ssh, each verified, tested and switched by itself."""

import json
import shlex
import tempfile
from pathlib import Path

import click

from . import options, text
from .export import DEVICES
from .failure import Failure

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15"


@click.command()
@click.argument("source", type=options.PATH)
@click.argument("hosts", nargs=-1, metavar="HOST...")
@click.option("--hosts-file", type=options.PATH, help="More hosts, one a line; # begins a remark.")
@click.option("--device", type=click.Choice(DEVICES), help="Kind of device, if an artifact is for several.")
@click.option("--prefix", default="", help="Folder on the devices; /opt/sparsec/NAME for root by default.")
@options.signed_by
@click.option(
    "--after", default="", metavar="COMMAND", help="Run there after the switch; failing takes it back."
)
@click.option("--rollback", is_flag=True, help="Go back to the version before.")
@click.option("--ssh", default=SSH, show_default=True, metavar="COMMAND", help="How to reach a host.")
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Devices at a time.")
@options.as_json
def deploy(
    source: Path,
    hosts: tuple[str, ...],
    hosts_file: Path | None,
    device: str | None,
    prefix: str,
    key: Path | None,
    after: str,
    rollback: bool,
    ssh: str,
    jobs: int,
    as_json: bool,
) -> None:
    """Install SOURCE, an exported folder or an exportable artifact, on every HOST.

    Each device verifies what arrived, runs its self-test, switches by one rename, keeps the version before,
    and stays as it was whatever fails.
    """
    from sparsec.compiler.deploy import Plan, roll_out
    from sparsec.runtime import signature

    wanted = list(dict.fromkeys([*hosts, *(listed(hosts_file) if hosts_file else ())]))
    if not wanted:
        raise click.UsageError("name a HOST, or a file of them with --hosts-file")
    for host in wanted:
        if host.startswith("-"):
            raise click.UsageError(f"{host!r} is an option where a host is wanted")
    if key:
        signature.public_key(key)
    with tempfile.TemporaryDirectory(prefix="sparsec-") as scratch:
        folder = source if source.is_dir() else exported(source, device, Path(scratch) / "folder")
        plan = Plan(folder, prefix, key.read_bytes() if key else b"", after, rollback)
        outcomes = roll_out(
            plan, wanted, shlex.split(ssh), jobs, lambda line: click.echo(f"  {line}", err=True)
        )
    if as_json:
        click.echo(json.dumps([outcome.to_json() for outcome in outcomes], indent=1))
    else:
        rows = [[o.host, o.status, o.version, text.duration(o.seconds), o.message] for o in outcomes]
        click.echo("\n".join(text.table(["host", "", "version in use", "time", ""], rows, "<<<><")))
    failed = [outcome.host for outcome in outcomes if outcome.status != "done"]
    if failed:
        raise Failure(f"{len(failed)} of {text.count(len(wanted), 'device')} failed: {', '.join(failed)}")


def listed(path: Path) -> list[str]:
    """The hosts in a file."""
    lines = options.readable(path, "file of hosts").read_text().splitlines()
    return [host for line in lines if (host := line.partition("#")[0].strip())]


def exported(artifact: Path, device: str | None, folder: Path) -> Path:
    """The device folder of an artifact."""
    from sparsec.compiler.export import export
    from sparsec.compiler.export.source import open_source

    export(open_source(options.readable(artifact, "artifact"), device, None, None), "folder", folder)
    return folder
