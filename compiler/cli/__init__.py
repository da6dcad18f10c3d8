"""The command line: one file per command, listed here in the order in which people need them.

Results go to stdout, progress to stderr.  Exit status: 0 done, 1 an expected failure (one line on
stderr), 2 wrong usage, 130 interrupted; a traceback is a bug.  No command module imports onnx or tvm
before it runs, so help is instant and ``run`` works where only numpy is installed.
"""

import click

from sparsec import __version__

from .bench import bench
from .compile import compile_
from .deploy import deploy
from .doctor import doctor
from .explain import explain
from .export import export
from .failure import Program
from .inspect import inspect
from .passes import passes
from .quantize import quantize
from .run import run
from .sign import keygen, sign
from .sparsify import sparsify
from .tune import tune
from .verify import verify

COMMANDS = (
    compile_,
    run,
    bench,
    verify,
    inspect,
    explain,
    sparsify,
    quantize,
    tune,
    export,
    deploy,
    sign,
    keygen,
    passes,
    doctor,
)


@click.group(cls=Program, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sparsec", message="%(prog)s %(version)s")
def main() -> None:
    """Compile sparse neural networks from ONNX to one verified file that runs anywhere."""
