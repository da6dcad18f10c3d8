"""What is exported: an artifact that was compiled with --exportable, for one kind of device."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsec.compiler import contents, package
from sparsec.compiler.errors import CompileError
from sparsec.runtime.manifest import WEIGHTS, Library


@dataclass(frozen=True)
class Device:
    """A kind of device: its architecture as manifests spell it, and as Debian and OCI images do."""

    architecture: str
    debian: str
    oci: Mapping[str, str]


DEVICES = {
    "x86-64-linux": Device("x86_64", "amd64", {"architecture": "amd64"}),
    "aarch64-linux": Device("aarch64", "arm64", {"architecture": "arm64"}),
    "riscv64-linux": Device("riscv64", "riscv64", {"architecture": "riscv64"}),
    "armv7-linux": Device("armv7", "armhf", {"architecture": "arm", "variant": "v7"}),
}


@dataclass(frozen=True)
class Source:
    """``name`` is what the model is called on devices; ``library`` the one that a program is linked from."""

    name: str
    device: Device
    artifact: bytes
    contents: contents.Contents
    library: Library

    @property
    def gpu(self) -> bool:
        """Whether the model runs on a GPU: then there is no static library."""
        return self.contents.manifest.gpu

    @property
    def archive(self) -> bytes:
        """The static library of the chosen level."""
        return self.contents.members[package.archive_member(self.library.level)]

    @property
    def weights(self) -> bytes:
        return self.contents.members.get(WEIGHTS, b"")

    @property
    def sample(self) -> bytes:
        return self.contents.members[package.SAMPLE]


def open_source(path: Path, device: str | None, name: str | None, level: str | None) -> Source:
    """The artifact at ``path`` for ``device``, or for the one kind that it runs on.

    ``level``: the CPU level of programs, the least demanding one if None.  ``name``: the file's, if None.
    Raises CompileError where the artifact does not fit.
    """
    found = contents.read(path)
    manifest = found.manifest
    machines = {library.architecture for library in manifest.libraries}
    kinds = [kind for kind, d in DEVICES.items() if d.architecture in machines]
    if not kinds:
        raise CompileError(f"{str(path)!r} has no code for a CPU of these devices: it goes there as it is")
    if device is None and len(kinds) != 1:
        raise CompileError(f"{str(path)!r} runs on {', '.join(kinds)}; name one with --device")
    kind = device or kinds[0]
    if kind not in kinds:
        raise CompileError(
            f"{str(path)!r} runs on {', '.join(kinds)}, not on {kind}; compile it for that, too"
        )
    fitting = [lib for lib in manifest.libraries if lib.architecture == DEVICES[kind].architecture]
    levels = [lib.level for lib in fitting]
    if level is not None and level not in levels:
        raise CompileError(f"{str(path)!r} has the levels {', '.join(levels)} for {kind}, not {level}")
    chosen = fitting[levels.index(level)] if level else fitting[-1]
    wanted = [package.SAMPLE] if manifest.gpu else [package.SAMPLE, package.archive_member(chosen.level)]
    for member in wanted:
        if member not in found.members:
            raise CompileError(f"{str(path)!r} has no {member}: compile the model with --exportable")
    return Source(plain_name(name or path.stem), DEVICES[kind], path.read_bytes(), found, chosen)


def plain_name(name: str) -> str:
    """``name`` as packages and files may be called (Debian policy 5.6.1), or CompileError."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if len(plain) < 2:
        raise CompileError(f"a model called {name!r} needs two letters or digits in its name; give --name")
    return plain
