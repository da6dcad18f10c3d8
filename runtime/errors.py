"""What can go wrong with an artifact, one exception per thing a caller can do about it.

``compiler/errors_page.py`` writes docs/errors.md from it.
"""


class SparsecError(Exception):
    """Every expected failure of sparsec; its text is one line, fit to be shown to a user."""

    code = 0
    """The status that the C API gives, see sparsec.h."""
    remedy = ""
    """What helps, for the table."""


class ArtifactError(SparsecError):
    """The file is damaged, cut off or cannot be read."""

    code = 1
    remedy = "copy or build the file again"


class FormatError(SparsecError):
    """The file is not a sparsec artifact, or its format is newer than this runtime."""

    code = 2
    remedy = "another file, or a newer sparsec"


class TargetError(SparsecError):
    """The artifact needs an architecture, an operating system or CPU features that are not here."""

    code = 3
    remedy = "compile for this machine too: `--target` takes several"


class InputError(SparsecError):
    """What the caller gave does not fit the model."""

    code = 4
    remedy = "call it as the message says"


class RunError(SparsecError):
    """The model could not be set up or run on this machine."""

    code = 5
    remedy = "the message names the step, or the memory or threads that ran out"


class SignatureError(SparsecError):
    """A signature is required, and the artifact has none, another key's or a wrong one."""

    code = 6
    remedy = "get the file from whom you trust, or sign it: `sparsec sign`"


KINDS = (ArtifactError, FormatError, TargetError, InputError, RunError, SignatureError)
"""All of them, in the order of their codes."""
