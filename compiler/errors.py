"""The compiler's own failures, beside those of ``sparsec.runtime.errors``."""

from sparsec.runtime.errors import SparsecError


class CompileError(SparsecError):
    """An expected failure of a compilation; its text is one line that says what to do."""


def last_line(error: BaseException) -> str:
    """What a foreign exception says in the end, which is where TVM puts the reason."""
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
