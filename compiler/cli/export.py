"""``sparsec export``: from an artifact to what a device takes."""

from pathlib import Path

import click

from . import options, text

DEVICES = ("x86-64-linux", "aarch64-linux", "riscv64-linux", "armv7-linux")
"""Those of sparsec.compiler.export.source."""


@click.command()
@click.argument("artifact", type=options.PATH)
@click.option("--to", type=options.PATH, required=True, metavar="DIR", help="Folder to make.")
@click.option("--device", type=click.Choice(DEVICES), help="Kind of device, if the artifact is for several.")
@click.option(
    "--static", "form", flag_value="static", help="One program with the model inside, and a library."
)
@click.option(
    "--system", "form", flag_value="system", help="A Debian package, a systemd unit, a container image."
)
@click.option("--level", help="CPU level of programs; the least demanding one of the artifact by default.")
@click.option("--name", help="What the model is called on devices; the file's name by default.")
def export(
    artifact: Path, to: Path, device: str | None, form: str | None, level: str | None, name: str | None
) -> None:
    """Make a folder for a device of ARTIFACT, which was compiled with --exportable.

    It holds the artifact, the runtime, examples in C and Python, a self-test and an installer.
    """
    from sparsec.compiler.export import export as make
    from sparsec.compiler.export.source import open_source

    source = open_source(options.readable(artifact, "artifact"), device, name, level)
    size = make(source, form or "folder", to)
    click.echo(f"wrote {text.visible(str(to))}, {text.size(size)}, for {source.device.architecture} Linux")
