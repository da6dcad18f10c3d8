"""The compiler's own failures, beside those of ``sparsec.runtime.errors``."""

from sparsec.runtime.errors import SparsecError


class CompileError(SparsecError):
    """An expected failure of a compilation; its text is one line that says what to do."""
