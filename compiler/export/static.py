"""The static form: one program with the model inside, and the same as a library and a header."""

from . import programs, texts
from .folder import headers
from .publish import File, with_sums
from .source import Source


def static_folder(source: Source) -> dict[str, File]:
    """The files of the static form of ``source``, by path."""
    program, archive = programs.linked(source)
    verify = programs.verifier(source.device.architecture)
    return with_sums(
        {
            "README.md": texts.readme("static", source),
            "install.sh": texts.install(source),
            "selftest": texts.script("selftest-static.sh", NAME=source.name),
            f"bin/{source.name}": File(program, program=True),
            "bin/sparsec-verify": File(verify, program=True),
            f"lib/lib{source.name}.a": File(archive),
            "include/sparsec.h": headers()["include/sparsec.h"],
            "examples/embedded.c": texts.plain("embedded.c"),
        }
    )
