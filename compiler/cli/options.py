"""Options that several commands share, and how their values are read."""

import re
from collections.abc import Callable
from pathlib import Path

import click

from .failure import Failure

#: Those of sparsec.compiler.request.
TARGETS = (
    "x86",
    "x86:v2",
    "x86:v3",
    "x86:v4",
    "arm",
    "arm:dot",
    "arm:i8mm",
    "arm:bf16",
    "armv7",
    "riscv64",
    "riscv64:rvv",
    "native",
)
TARGETS += ("cuda", "cuda:sm_80", "cuda:sm_87", "cuda:sm_89", "cuda:sm_90")


class Target(click.Choice):
    """``x86,arm`` -> "x86,arm"; every part is one of the targets."""

    name = "TARGET"

    def convert(self, value, param, ctx):
        return ",".join(super(Target, self).convert(part, param, ctx) for part in value.split(","))


class Precision(click.Choice):
    """``bf16`` or ``bf16,int8``: one precision, or those of which each layer gets one."""

    mixed = "bf16,int8"

    def convert(self, value, param, ctx):
        if "," not in value:
            return super().convert(value, param, ctx)
        if sorted(value.split(",")) != sorted(self.mixed.split(",")):
            self.fail(
                f"{value!r}: of several each layer gets one, or stays fp32; write {self.mixed}", param, ctx
            )
        return self.mixed


class Shape(click.ParamType):
    """``name=1x3x224x224`` -> (name, (1, 3, 224, 224)).  The name may contain ``=``; the last one counts."""

    name = "NAME=AxBx..."

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        name, equals, sizes = value.rpartition("=")
        if not equals or not name or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
            self.fail(f"{value!r}: write the input's name and its sizes, as in image=1x3x224x224", param, ctx)
        return name, tuple(int(size) for size in sizes.split("x"))


class Dim(click.ParamType):
    """``batch=1`` -> ("batch", 1)."""

    name = "DIM=SIZE"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        name, equals, size = value.rpartition("=")
        if not equals or not name or not re.fullmatch(r"[1-9]\d*", size):
            self.fail(f"{value!r}: write the dimension's name and its size, as in batch=1", param, ctx)
        return name, int(size)


class Patterns(click.ParamType):
    """``2:4,1:4`` -> ("2:4", "1:4")."""

    name = "N:M,N:M..."

    def convert(self, value, param, ctx):
        return value if isinstance(value, tuple) else tuple(value.split(","))


class Pair(click.ParamType):
    """``a=b`` -> ("a", "b"), neither empty.  The first ``=`` divides, so that ``b`` may contain one."""

    wanted: str

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        left, _, right = value.partition("=")
        if not left or not right:
            self.fail(f"{value!r}: write {self.wanted}", param, ctx)
        return left, right


class State(Pair):
    """``past_*=present_*`` -> ("past_*", "present_*"): an input, and the output that feeds it."""

    name = "PAST=PRESENT"
    wanted = "an input and an output, as in past=present"


class NamedFile(Pair):
    """``x=x.npy`` -> ("x", Path("x.npy"))."""

    name = "NAME=FILE.npy"
    wanted = "the input's name and a file, as in x=x.npy"

    def convert(self, value, param, ctx):
        name, path = super().convert(value, param, ctx)
        return name, Path(path)


PATH = click.Path(path_type=Path)

target = click.option(
    "--target",
    type=Target(TARGETS),
    multiple=True,
    default=("x86",),
    show_default=True,
    callback=lambda _ctx, _param, value: ",".join(value),
    help="Machine to compile for; several (repeated, or with commas) go into one file.",
)
passes = click.option(
    "--passes",
    "passes_",
    default="",
    metavar="SPEC",
    help="Passes that change the model; see `sparsec passes`.",
)
shapes = click.option("--shape", "shapes", type=Shape(), multiple=True, help="Freeze an input's shape.")
dims = click.option("--dim", "dims", type=Dim(), multiple=True, help="Freeze a symbolic dimension.")
calib = click.option(
    "--calib",
    type=PATH,
    metavar="DATA.npz",
    help="Real inputs, one array per input name, for checks and passes.",
)
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "int8-weights", "int4-weights")


def precision(kind: click.Choice, more: str = ""):
    """`--precision`, of one for all layers, or as `kind` says."""
    return click.option(
        "--precision",
        type=kind,
        default="fp32",
        show_default=True,
        help="Lowest precision of layers with weights; sums, normalisers and the last layer stay fp32. "
        "tf32 and fp16: GPUs. int8: quantised on --calib. int8-weights and int4-weights: of weights alone, "
        f"of all layers, with --calib rounded for the least error of each.{more}",
    )


mask = click.option(
    "--mask", default="", metavar="INPUT", help="Input whose zeros mark padding [attention_mask]."
)
layers = click.option(
    "--layers", default="*", metavar="GLOBS", help="Only layers with such names, joined by |."
)
skip = click.option("--skip", default="", metavar="GLOBS", help="But not these.")
damping = click.option(
    "--damping",
    type=click.FloatRange(min=0, min_open=True),
    help="How strongly to hold on to the dense weights; without it, by the amount of calibration data.",
)


def max_error(what: str) -> Callable:
    """What is said of the outputs' error differs between commands; its meaning does not."""
    return click.option("--max-error", type=click.FloatRange(min=0), metavar="E", help=what)


def target_latency(of: str) -> Callable:
    """``of``: what takes all of the time."""
    return click.option(
        "--target-latency",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="R",
        help=f"Budget: R times {of} on this machine.",
    )


max_drop = click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="D",
    help="Budget: the metric drops by at most D on calibration samples that were held out.",
)
metric = click.option(
    "--metric",
    metavar="FILE.py:NAME",
    help="Function of (outputs, samples); larger is better. By default accuracy, by `labels` in the npz.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
threads = click.option(
    "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads to run with."
)
device = click.option(
    "--device",
    type=click.IntRange(0),
    metavar="N",
    help="GPU to run on, counted from 0; 0 by default.",
)
variant = click.option(
    "--variant", metavar="N:M", help="Of the artifact's variants the one to take; the first by default."
)
signed_by = click.option(
    "--require-signature",
    "key",
    type=PATH,
    metavar="KEY.pub",
    help="Refuse the artifact unless this key has signed it.",
)


def unique(pairs: tuple[tuple[str, object], ...], option: str) -> dict:
    """The pairs as a dict; a name that is given twice is wrong usage."""
    found = {}
    for name, value in pairs:
        if name in found:
            raise click.UsageError(f"{option} {name!r} is given twice")
        found[name] = value
    return found


def readable(path: Path, what: str) -> Path:
    """``path`` if it is a file that can be opened; otherwise one line that says why not."""
    if not path.exists():
        raise Failure(f"{what} {str(path)!r} does not exist")
    if not path.is_file():
        raise Failure(f"{what} {str(path)!r} is not a regular file")
    path.open("rb").close()
    return path
