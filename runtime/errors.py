"""What can go wrong with an artifact, one exception per thing a caller can do about it.

===============  ==============================================  =================================
kind             the cause                                       what helps
===============  ==============================================  =================================
ArtifactError    the bytes are damaged, cut off or unreadable    copy or build the file again
FormatError      not an artifact, or one of a newer format       another file, a newer sparsec
TargetError      built for a machine that this one is not        compile for this machine
InputError       a wrong name, shape, dtype, count or option     call it as the message says
RunError         a kernel refused, or memory or threads ran out  the message names the step
===============  ==============================================  =================================
"""


class SparsecError(Exception):
    """Every expected failure of sparsec; its text is one line, fit to be shown to a user."""


class ArtifactError(SparsecError):
    """The file is damaged, cut off or cannot be read."""


class FormatError(SparsecError):
    """The file is not a sparsec artifact, or its format is newer than this runtime."""


class TargetError(SparsecError):
    """The artifact needs an architecture, an operating system or CPU features that are not here."""


class InputError(SparsecError):
    """What the caller gave does not fit the model."""


class RunError(SparsecError):
    """The model could not be set up or run on this machine."""
