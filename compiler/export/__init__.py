"""From an artifact to what a device takes: a folder, a program, packages of the system's own.

source    an exportable artifact and the device that it is for
programs  C sources to programs and libraries, by zig
folder    the device folder: artifact, runtime, examples
static    one program with the model inside, and the same as a library
system    a Debian package with a systemd unit, and a container image
publish   a folder that is there whole or not at all
"""

from collections.abc import Callable
from pathlib import Path

from sparsec.compiler.errors import CompileError

from .folder import device_folder
from .publish import write_folder
from .source import Source
from .static import static_folder
from .system import system_folder

FORMS: dict[str, Callable[[Source], dict]] = {
    "folder": device_folder,
    "static": static_folder,
    "system": system_folder,
}
"""What can be made: name -> a function from the source to the files, ``{path: File}``."""


def export(source: Source, form: str, to: Path) -> int:
    """Make the ``form`` of ``source`` in the new folder ``to``; returns the number of bytes.

    Raises SparsecError or OSError; then there is no such folder.
    """
    if source.gpu and form != "folder":
        raise CompileError(
            f"--{form} is for CPUs: a GPU's driver is a shared library, which a static program cannot open; "
            "export the folder, without it"
        )
    files = FORMS[form](source)
    write_folder(to, files)
    return sum(len(file.data) for file in files.values())
