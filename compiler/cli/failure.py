"""How a failure looks: one line on stderr and an exit status, whatever raised it."""

import os
import sys

import click

from .text import visible

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Failure(click.ClickException):
    """An expected failure found by the command line itself; exit status 1."""

    def show(self, file=None) -> None:
        click.echo(f"sparsec: {visible(self.message.strip())}", file=file or sys.stderr)


class Program(click.Group):
    """The command group.  It lists commands in their own order and turns exceptions into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("sparsec: interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            raise Failure(os_error(error)) from error
        except Exception as error:
            if isinstance(error, expected()):
                raise Failure(str(error)) from error
            raise


def expected() -> tuple[type[Exception], ...]:
    """The kinds of exception that are no bug.  Only modules that are loaded can have raised one."""
    names = (("sparsec.runtime.errors", "SparsecError"), ("sparsec.passes.base", "PassError"))
    return tuple(getattr(sys.modules[module], kind) for module, kind in names if module in sys.modules)


def os_error(error: OSError) -> str:
    """What the operating system refused, and for which file."""
    what = os.strerror(error.errno) if error.errno else str(error)
    return f"{error.filename!r}: {what}" if error.filename is not None else what
