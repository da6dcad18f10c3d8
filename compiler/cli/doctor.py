"""``sparsec doctor``: what this machine can build and run, and what each missing part disables."""

import json
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import click

from . import options, text

# Distribution -> what does not work without it.
PACKAGES = {
    "numpy": "everything: loading and running models",
    "apache-tvm": "compile, sparsify --passes, explain with gains",
    "apache-tvm-ffi": "compile",
    "onnx": "compile, explain, sparsify, inspect MODEL.onnx",
    "onnx-ir": "compile, explain, sparsify, inspect MODEL.onnx",
    "onnxscript": "compile",
    "onnxruntime": "compile's check, verify --model, bench --against",
}


@dataclass(frozen=True)
class Check:
    """One line of the report.  ``without`` says what is disabled when ``ok`` is false.

    What only some people need is ``optional``: without it the machine is no less well.
    """

    name: str
    found: str
    ok: bool
    without: str
    optional: bool = False


@click.command()
@options.as_json
def doctor(as_json: bool) -> None:
    """Say what this machine can build and run."""
    checks = [python(), *map(package, PACKAGES), linker(), cuda(), gpu(), cpu(), memory()]
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=1))
        return
    columns = max(len(check.name) for check in checks)
    for check in checks:
        mark = click.style("ok", fg="green") if check.ok else click.style("--", fg="red")
        click.echo(f"{mark}  {check.name:<{columns}}  {check.found}")
        if not check.ok:
            click.echo(f"    {'':<{columns}}  disabled without it: {check.without}")
    missing = sum(not (check.ok or check.optional) for check in checks)
    click.echo()
    click.echo(
        "This machine can compile and run." if not missing else f"{text.count(missing, 'part')} missing."
    )


def python() -> Check:
    version = platform.python_version_tuple()
    ok = (int(version[0]), int(version[1])) >= (3, 11)
    return Check("python", platform.python_version(), ok, "everything: Python 3.11 or newer is needed")


def package(name: str) -> Check:
    try:
        return Check(name, metadata.version(name), True, PACKAGES[name])
    except metadata.PackageNotFoundError:
        return Check(name, "not installed", False, PACKAGES[name])


def linker() -> Check:
    """The C compiler that ``compile`` would take, tried on one function."""
    from sparsec.runtime import build

    try:
        command = build.compiler()
        with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
            (Path(folder) / "try.c").write_text("int answer(void) { return 42; }\n")
            build.run(build.compile_command(command, "try.c", "try.o"), Path(folder))
    except build.BuildError as error:
        return Check("linker", str(error), False, "compile")
    return Check("linker", " ".join(command), True, "compile")


def cuda() -> Check:
    """The CUDA compiler that ``compile --target cuda`` would take."""
    from sparsec.compiler.cuda.toolchain import toolchain
    from sparsec.compiler.errors import CompileError

    try:
        return Check("cuda", str(toolchain()), True, "compile --target cuda", optional=True)
    except CompileError as error:
        return Check("cuda", str(error), False, "compile --target cuda", optional=True)


def gpu() -> Check:
    """NVIDIA's driver, which running models on GPUs needs."""
    import ctypes

    without = "running artifacts for GPUs"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check("gpu", "no NVIDIA driver", False, without, optional=True)
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Check("gpu", "the NVIDIA driver finds no GPU", False, without, optional=True)
    return Check("gpu", text.count(count.value, "NVIDIA GPU"), True, without, optional=True)


def cpu() -> Check:
    from sparsec.runtime.cpu import LEVEL_FEATURES, architecture, features, levels

    have = features()
    runs = sorted(levels())
    extra = sorted(have - {f for needed in LEVEL_FEATURES.values() for f in needed})
    found = f"{architecture()}, {'levels ' + ', '.join(runs) if runs else 'no known level'}"
    if extra:
        found += f", also {', '.join(extra)}"
    return Check("cpu", found, "v3" in runs, "running artifacts for x86 (they need level v3 or v4)")


def memory() -> Check:
    """Compiling wants about six times the model's weights; 2 GB serve small models."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    found = f"{text.size(total)}, {text.count(cores, 'core')}"
    return Check("memory", found, total >= 2e9, "compiling all but small models")
