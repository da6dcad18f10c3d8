"""The page of the runtime's errors, from their classes.

python -m sparsec.compiler.errors_page > docs/errors.md
"""

import sys

from sparsec.runtime.errors import KINDS

HEAD = (
    "# Errors of the runtime",
    "",
    "Written by `python -m sparsec.compiler.errors_page > docs/errors.md` from `runtime/errors.py`.",
    "",
    "All are a `SparsecError`, whose text is one line: who, what was wanted, what was found.",
    "In C the status is the kind, and `sparsec_error.message` the text.",
    "",
    "| Python | C | cause | what helps |",
    "|---|---|---|---|",
)


def page() -> str:
    """``docs/errors.md``."""
    rows = [
        f"| `{kind.__name__}` | `SPARSEC_E_{kind.__name__.removesuffix('Error').upper()}` = {kind.code} "
        f"| {kind.__doc__} | {kind.remedy} |"
        for kind in KINDS
    ]
    return "\n".join([*HEAD, *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
