"""The documented errors: the page is current, and kinds and codes are those of the C header."""

import re
from pathlib import Path

from sparsec import runtime
from sparsec.compiler.errors_page import page
from sparsec.runtime import build, errors

ROOT = Path(__file__).resolve().parents[2]


def test_page_is_current():
    text = (ROOT / "docs" / "errors.md").read_text()
    assert text == page(), "run: python -m sparsec.compiler.errors_page > docs/errors.md"


def test_every_public_error_is_in_the_table():
    public = {getattr(runtime, name) for name in runtime.__all__ if name.endswith("Error")}
    assert public == {errors.SparsecError, *errors.KINDS}
    assert all(kind.__doc__ and kind.remedy for kind in errors.KINDS)


def test_codes_are_those_of_the_c_header():
    header = (build.SOURCES / "sparsec.h").read_text()
    declared = {name: int(code) for name, code in re.findall(r"SPARSEC_E_(\w+) = (\d+)", header)}
    assert declared == {kind.__name__.removesuffix("Error").upper(): kind.code for kind in errors.KINDS}
