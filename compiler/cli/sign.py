"""``sparsec keygen`` and ``sparsec sign``: who vouches for an artifact."""

from pathlib import Path

import click

from . import options, text


@click.command()
@click.argument("key", type=options.PATH)
def keygen(key: Path) -> None:
    """Make a pair of Ed25519 keys: KEY to sign with, KEY.pub for everyone who checks."""
    from sparsec.compiler import signing

    public = signing.new_key(key)
    click.echo(f"wrote {text.visible(str(key))} (keep it secret) and {text.visible(str(public))}")


@click.command()
@click.argument("artifact", type=options.PATH)
@click.option("--key", type=options.PATH, required=True, help="Private key, as `sparsec keygen` makes it.")
@click.option("-o", "--output", "out", type=options.PATH, help="Write here; ARTIFACT itself by default.")
def sign(artifact: Path, key: Path, out: Path | None) -> None:
    """Sign ARTIFACT, or a folder that `sparsec export` made of one.

    Loaders and installers then can require it: `--require-signature KEY.pub`.
    """
    from sparsec.compiler import signing

    if not artifact.is_dir():
        options.readable(artifact, "artifact")
    elif out is not None:
        raise click.UsageError("the signature of a folder is written into it; leave out --output")
    secret = signing.private_key(
        options.readable(key, "key"), lambda: click.prompt("Passphrase", hide_input=True, err=True)
    )
    if artifact.is_dir():
        name = signing.sign_folder(artifact, secret)
    else:
        name = signing.sign(artifact, secret, out or artifact)
    click.echo(f"signed {text.visible(str(out or artifact))} with the key {name}")
