"""The one error of ingest, and how foreign names are written into one line."""

from sparsec.compiler.errors import CompileError


class IngestError(CompileError):
    """The model cannot be read or compiled as it is; the text is one line that says what to do."""


def quoted(name: str, limit: int = 80) -> str:
    """A foreign name in quotes on one line: control characters escaped, long names cut."""
    text = name if len(name) <= limit else name[: limit - 3] + "..."
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + "'"


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of a foreign exception folded to one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
