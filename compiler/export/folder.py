"""The device folder: an artifact with everything that a device needs to check and to run it."""

from collections.abc import Mapping
from pathlib import Path

from sparsec.runtime import build

from . import programs, texts
from .publish import File, with_sums
from .source import Source

# Modules of the Python loader that are not needed to run models.
_NOT_ON_DEVICES = {"build.py", "setup.py"}


def device_folder(source: Source) -> dict[str, File]:
    """The files of the folder for ``source``, by path."""
    made = programs.runtime(source.device.architecture)
    files = {
        "README.md": texts.readme("folder", source),
        "install.sh": texts.install(source),
        "selftest": texts.script("selftest-artifact.sh"),
        "model.sparsec": File(source.artifact),
        "bin/sparsec-device": File(made["sparsec-device"], program=True),
        "bin/sparsec-verify": File(programs.verifier(source.device.architecture), program=True),
        "lib/libsparsec.a": File(made["libsparsec.a"]),
        "lib/libsparsec.so": File(made["libsparsec.so"], program=True),
        **headers(),
        "examples/classify.c": texts.plain("classify.c"),
        "examples/run.py": texts.plain("run.py"),
    }
    return with_sums(files | python_loader())


def headers() -> Mapping[str, File]:
    """For C and for C++."""
    return {
        f"include/{name}": File((build.SOURCES / name).read_bytes()) for name in ("sparsec.h", "sparsec.hpp")
    }


def python_loader() -> Mapping[str, File]:
    """The loader in Python as the package ``sparsec_runtime``."""
    folder = Path(build.__file__).parent
    modules = [path for path in sorted(folder.glob("*.py")) if path.name not in _NOT_ON_DEVICES]
    return {f"python/sparsec_runtime/{path.name}": File(path.read_bytes()) for path in modules}
