"""What every test may use: markers for what a machine has, the shared models, a single-threaded oracle."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Timings and oracles are single-threaded; these are read when the libraries are first loaded,
# so nothing above may import numpy.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

ROOT = Path(__file__).resolve().parent.parent

# `import zoo` in tests and in benchmarks.  Appended, so that it shadows nothing.
sys.path.append(str(ROOT / "tests"))


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes many seconds; runs with --run-slow (make test-full)")
    config.addinivalue_line(
        "markers", "isa(*features): needs these CPU features, as /proc/cpuinfo spells them"
    )
    config.addinivalue_line("markers", "qemu(*architectures): needs QEMU's user mode for these, and ziglang")


def missing_emulators(architectures) -> list[str]:
    names = [
        f"qemu-{a}"
        for a in architectures
        if not (shutil.which(f"qemu-{a}-static") or shutil.which(f"qemu-{a}"))
    ]
    return names + ([] if find_spec("ziglang") else ["ziglang"])


def cpu_features() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def pytest_collection_modifyitems(config, items):
    features = cpu_features()
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))
        missing = [f for mark in item.iter_markers("isa") for f in mark.args if f not in features]
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"this CPU has no {', '.join(missing)}"))
        for mark in item.iter_markers("qemu"):
            if absent := missing_emulators(mark.args):
                why = f"not installed: {', '.join(absent)} (apt-get install qemu-user-static)"
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of trained models that are not part of the project."""
    folder = Path(os.environ.get("SPARSEC_MODELS", ROOT.parent / "shared" / "models"))
    if not folder.is_dir():
        pytest.skip("no folder of shared models: set SPARSEC_MODELS to one")
    return folder


@pytest.fixture(scope="session")
def ort_run():
    """``ort_run(model, feeds) -> {output: array}``: ONNX Runtime, one thread; model is a path or bytes.

    ``plain=True`` switches its graph optimisations off: how far that is from the usual result is how far
    rounding alone may take anybody.
    """
    import onnxruntime

    def run(model: str | Path | bytes, feeds: dict, *, plain: bool = False) -> dict:
        options = onnxruntime.SessionOptions()
        if plain:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdqisint8allowed", "1")  # integers for int8, too
        source = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run
