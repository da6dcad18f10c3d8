"""Work on foreign models goes to a worker process; progress comes back as lines on stderr."""

import os

import click

from . import text

TIMEOUT = 3600.0  # seconds: a hang ends some day, the largest models that fit into memory take minutes
MEMORY_SHARE = 0.9  # of the machine's: what is beyond is better refused than swapped


def do(command: str, request: dict) -> dict:
    """The result of ``command``'s task; an expected failure comes back as the same exception."""
    from sparsec.compiler import worker

    memory = int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return worker.run_in_worker(command, request, timeout=TIMEOUT, memory=memory, on_progress=show)


def show(message: dict) -> None:
    """One line on stderr for each stage."""
    click.echo(f"  {text.visible(message['progress'])}", err=True)
