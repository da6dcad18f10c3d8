"""The files that are written and not built: scripts, examples, pages, from the templates in ``files``."""

from pathlib import Path

from .publish import File
from .source import Source

_FILES = Path(__file__).parent / "files"


def plain(name: str, **values: str) -> File:
    """A file of ``files``; ``@KEY@`` stands for the value of that key."""
    text = (_FILES / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return File(text.encode())


def script(name: str, **values: str) -> File:
    return File(plain(name, **values).data, program=True)


def install(source: Source) -> File:
    """The script that installs a folder on a device."""
    return script("install.sh", NAME=source.name)


def readme(form: str, source: Source) -> File:
    """The page for who holds the device."""
    manifest = source.contents.manifest
    ports = [
        f"| {side} | `{info.name}` | {info.dtype} | {' x '.join(map(str, info.shape)) or 'scalar'} |"
        for side, infos in (("input", manifest.inputs), ("output", manifest.outputs))
        for info in infos
    ]
    return plain(
        f"README-{form}.md",
        NAME=source.name,
        PORTS="\n".join(ports),
        MACHINE=source.device.architecture,
        GPU=_gpu(manifest.raw["gpu"]) if source.gpu else "",
        LEVEL=source.library.level,
        FEATURES=", ".join(source.library.features) or "none",
        SOURCE=manifest.raw["source_sha256"],
        VERSION=manifest.raw["sparsec_version"],
    )


def _gpu(made: dict) -> str:
    """What a model for GPUs needs beside the machine."""
    names = ", ".join([*made["architectures"], *(["later ones"] if made["ptx"] else [])])
    return f" and an NVIDIA GPU ({names}), whose driver knows CUDA {made['cuda'].partition('.')[0]}"
