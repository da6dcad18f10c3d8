"""``sparsec passes``: what can be said in ``--passes``, read from the passes themselves."""

import dataclasses
import json
import typing

import click

from . import options


@click.command()
@options.as_json
def passes(as_json: bool) -> None:
    """List the passes, their options and examples."""
    from sparsec.passes import INSERTERS, RECOGNISERS

    found = [describe(cls, "on request") for cls in INSERTERS]
    found += [describe(cls, "always") for cls in RECOGNISERS]
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo("On request, in the order in which --passes names them:")
    for entry in found:
        if entry["runs"] == "on request":
            click.echo()
            click.echo(click.style(entry["name"], bold=True) + f": {entry['summary']}")
            for option in entry["options"]:
                click.echo(f"    {option['name']}: {option_text(option)}")
            click.echo(f"    example: --passes '{entry['example']}'")
    click.echo()
    click.echo("Always, without changing a number:")
    for entry in found:
        if entry["runs"] == "always":
            click.echo(f"  {entry['name']}: {entry['summary']}")


def describe(cls: type, runs: str) -> dict:
    """One pass as data: name, summary, example, options with type, default, choices and help."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found.append(
            {
                "name": field.name,
                "type": getattr(hints[field.name], "__name__", str(hints[field.name])),
                "required": required,
                "default": None if required else field.default,
                "choices": list(field.metadata.get("choices", ())),
                "help": field.metadata.get("help", ""),
            }
        )
    return {"name": cls.NAME, "summary": cls.SUMMARY, "example": cls.EXAMPLE, "runs": runs, "options": found}


def option_text(option: dict) -> str:
    """One line: help, choices, and the default or that there is none."""
    parts = [option["help"] or option["type"]]
    if option["choices"]:
        parts.append("one of " + ", ".join(map(str, option["choices"])))
    if option["required"]:
        parts.append("required")
    elif option["default"] not in (None, ""):
        parts.append(f"default {option['default']}")
    return "; ".join(parts)
