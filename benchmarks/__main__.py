"""`python -m benchmarks WHAT`: make the files, measure, write the tables.

python -m benchmarks prepare --models minilm,resnet50        compile only, outside any measurement
python -m benchmarks models --models minilm --variants dense,2:4x32 --threads 1 --seconds 3
python -m benchmarks models --models minilm --variants dense,2:4x32 --threads 1 --precision bf16
python -m benchmarks kernels --only "gemm 128"
python -m benchmarks starts
python -m benchmarks loops
python -m benchmarks report
"""

import argparse
import sys

from . import goals, kernels, loops, plots, report, results, starts
from .accuracy import page, store
from .compiled import CompileFailed, compiled
from .prune import VARIANTS
from .rows import ENGINES, files, model_row, settings_of
from .subjects import subjects

#: What the ratios are made of.
DENSE = ("sparsec", "onnxruntime", "openvino_fp32")
#: The networks of the table of goals; `all` names every model there is.
DEFAULT = ("minilm", "resnet50", "mobilenet_v2", "vit_s16", "gpt2_decode", "bert")


def main() -> None:
    asked = arguments()
    asked.run(asked)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for name, run, text in (
        ("models", measure_models, "measure whole networks"),
        ("prepare", prepare_models, "make and compile the files of whole networks, measure nothing"),
        ("starts", starts.measure, "measure cold starts in fresh processes"),
        ("kernels", kernels.measure, "measure single operators and the machine's peaks"),
        ("loops", loops.write, "count and simulate inner loops for CPUs that are not here"),
        ("report", write_report, "write tables and plots from the JSON"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        if name in ("loops", "report"):
            continue
        whole = name in ("models", "prepare")
        default = None if whole else DENSE if name == "kernels" else (*DENSE, "deepsparse")
        known = tuple(dict.fromkeys(engine for each in ENGINES.values() for engine in each))
        command.add_argument("--engines", type=names(known), default=default, help=", ".join(known))
        command.add_argument("--seconds", type=float, default=2.0, help="for each engine and row")
        command.add_argument("--target", default="native", help="as in `sparsec compile`")
        command.add_argument("--deepsparse", metavar="PYTHON", help="an interpreter that has DeepSparse")
        if name == "kernels":
            command.add_argument("--only", default="", metavar="REGEX", help="only the cases so named")
            command.add_argument("--prepare", action="store_true", help="compile only")
            continue
        command.add_argument("--models", type=names((*subjects(), "all")), default=DEFAULT)
        if name == "starts":
            command.add_argument(
                "--iree", metavar="PYTHON", help="an interpreter that has IREE and its compiler"
            )
            continue
        command.add_argument("--precision", choices=tuple(ENGINES), default="fp32")
        command.add_argument("--variants", type=names(VARIANTS), default=tuple(VARIANTS))
        command.add_argument("--batch", type=integers, default=[1])
        command.add_argument("--threads", type=integers, default=[1, 2])
    return parser.parse_args()


def names(known):
    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are {', '.join(known)}")
        return chosen

    return parse


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def chosen(asked):
    """Every subject, variant and batch size that was asked for and exists."""
    known = subjects()
    for name in known if "all" in asked.models else asked.models:
        for batch in asked.batch:
            for variant in asked.variants:
                if known[name].fits(variant, batch):
                    yield known[name], variant, batch


def prepare_models(asked) -> None:
    for subject, variant, batch in chosen(asked):
        what = f"{subject.name} {variant} batch {batch}, {asked.precision}"
        try:
            _, costs = compiled(
                files(subject, variant, batch, asked.precision)[0], asked.target, asked.precision
            )
            print(f"{what}: {costs['compile_seconds']} s", file=sys.stderr)
        except CompileFailed as error:
            print(f"{what}: {error}", file=sys.stderr)


def measure_models(asked) -> None:
    run, settings = results.this_run(), settings_of(asked)
    for subject, variant, batch in chosen(asked):
        for threads in asked.threads:
            row = model_row(subject, variant, batch, threads, settings)
            results.add("models", row, run)
            times = {key: value.get("p50_ms") for key, value in row["engines"].items()}
            shown = "  ".join(f"{key} {ms:.3f}" if ms else f"{key} -" for key, ms in times.items())
            against = goals.ratio(row)
            about = f"{against:.2f}x the best peer" if against else "no ratio"
            print(f"{subject.name} {variant} b{batch} t{threads}: {shown}  ({about})", flush=True)
    write_report(asked)


def write_report(asked) -> None:
    found = results.load()
    report.write(found)
    plots.write(found)
    page.write(store.load())


if __name__ == "__main__":
    main()
